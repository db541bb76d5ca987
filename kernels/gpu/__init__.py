"""Matmul kernels for GPUs in Pallas (Mosaic GPU), each beside its reference. None was run on a chip."""
