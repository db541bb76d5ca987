"""Matmul kernels in C++ for the CPU, one source each, built on first use with the system's compiler."""
