"""Ternary weights, by Li et al. 2016 (arXiv:1605.04711), without the training: per group it is FGQ (arXiv:1705.01462).

Catalogue K2, K34, K36. A weight below 0.7 of its group's mean magnitude is zero, the others share the mean of theirs.
The paper trains through this with a straight-through gradient.
"""

from __future__ import annotations

from qjax import solvers, transforms
from qjax.transforms.contract import Chain


def twn(format: str = "int2_g64_narrow", threshold: float = 0.7) -> Chain:
    """-1, 0 and 1 under a threshold; no data. Catalogue K2, K34, K36.

    >>> [t.name for t in twn()]
    ['twn int2_g64_narrow']
    """
    return transforms.chain(transforms.quantize_with(solvers.twn, format, threshold=threshold))
