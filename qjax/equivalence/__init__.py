"""Equivalences: same function, other numbers; online before a matmul, then folded into its producer where exact."""

from qjax.equivalence.cross_layer import absorbed, clipped_normal_mean, equalize_ranges, equalizing_scale
from qjax.equivalence.folding import Online, fold
from qjax.equivalence.rotation import absorb_gains, rotate_stream, rotate_values

__all__ = [
    "Online",
    "absorb_gains",
    "absorbed",
    "clipped_normal_mean",
    "equalize_ranges",
    "equalizing_scale",
    "fold",
    "rotate_stream",
    "rotate_values",
]
