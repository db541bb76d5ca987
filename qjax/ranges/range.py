"""What a range estimator is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from jax import Array

Project = Callable[[Array, Array], Array]


class Range(Protocol):
    """A hashable callable from blocked values to each block's range (low, high).

    x         : float32 values, cut so that `axes` (negative) lie inside a block.
    symmetric : the format has neither offset nor signed rule: only max(-low, high) will count.
    project   : (low, high) -> `x` as the format would decode it with that range; for estimators that search.
    Returns low and high with `axes` reduced to size 1 (keepdims).
    """

    def __call__(self, x: Array, axes: tuple[int, ...], symmetric: bool, project: Project) -> tuple[Array, Array]: ...
