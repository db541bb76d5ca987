"""What a range estimator is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from jax import Array

from qjax.formats.format import Format
from qjax.ranges.reductions import ends, largest_magnitude

Project = Callable[[Array, Array], Array]


class Range(Protocol):
    """A hashable callable from blocked values to each block's range (low, high).

    x       : float32 values, cut so that `axes` (negative) lie inside a block.
    fmt     : the format that will use the range; see `symmetric`.
    project : (low, high) -> `x` as the format would decode it with that range; for estimators that search.
    weights : how often each value counts (float32, broadcasts against `x`), once if None: weight 2 is the value twice.
              Weight 0 is a value that is known to occur and counts for nothing but the extremes. So a histogram is
              estimated from as its bins are, an importance is a weight, and padding weighs nothing.
    Returns low and high with `axes` reduced to size 1 (keepdims). An estimator may name, as its attribute `summary`,
    the statistic of `qjax.statistics` as which it sees calibration data: bins of equal ratio ("log_histogram") if not.
    """

    def __call__(
        self, x: Array, axes: tuple[int, ...], fmt: Format, project: Project, weights: Array | None = None
    ) -> tuple[Array, Array]: ...


def symmetric(fmt: Format) -> bool:
    """Whether a format has neither offset nor signed rule: only max(-low, high) counts."""
    return fmt.offset is None and fmt.rule != "signed"


def extremes(x: Array, axes: tuple[int, ...], fmt: Format) -> tuple[Array, Array]:
    """The range that holds every value, -max|x|, max|x| for a symmetric format; NaN if there is one."""
    return largest_magnitude(x, axes) if symmetric(fmt) else ends(x, axes)
