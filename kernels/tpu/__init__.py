"""Matmul kernels for TPUs in Pallas, each beside its reference."""
