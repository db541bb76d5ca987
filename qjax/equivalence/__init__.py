"""Equivalences: same function, other numbers; online before a matmul, then folded into its producer where exact."""

from qjax.equivalence.folding import Online, fold

__all__ = ["Online", "fold"]
