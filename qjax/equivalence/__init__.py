"""Equivalences: same function, other numbers; online before a matmul, then folded into its producer where exact."""

from qjax.equivalence.folding import Online, fold
from qjax.equivalence.rotation import absorb_gains, rotate_stream, rotate_values

__all__ = ["Online", "absorb_gains", "fold", "rotate_stream", "rotate_values"]
