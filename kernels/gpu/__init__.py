"""Matmul kernels for GPUs in Pallas (Mosaic GPU), each beside its reference; Hopper's was run on an H100."""
