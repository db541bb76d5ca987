"""Compiling kernels for accelerators that are not here, and judging what the compiler made of them."""
