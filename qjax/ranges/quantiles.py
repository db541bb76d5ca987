"""Ranges that leave out a fixed share of the values (catalogue B3)."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from qjax.formats.format import Format
from qjax.ranges.range import Project, symmetric


@dataclass(frozen=True)
class percentile:
    """The range that holds `p` percent of a block: the p-th percentile of |x|, or (100-p)/2 percent off each end.

    Between two values it interpolates, as numpy does; of a histogram it is right within a bin.

    >>> from qjax.formats import parse
    >>> low, high = percentile(50.0)(jnp.arange(5.0), (-1,), parse("int8"), lambda low, high: low)
    >>> high.tolist()
    [2.0]
    """

    p: float = 99.9

    def __post_init__(self) -> None:
        if not 0 < self.p <= 100:
            raise ValueError(f"percentile p must lie in (0, 100], got {self.p}")

    def __call__(
        self, x: Array, axes: tuple[int, ...], fmt: Format, project: Project, weights: Array | None = None
    ) -> tuple[Array, Array]:
        outside = (100 - self.p) / 100
        if symmetric(fmt):
            high = upper_quantile(jnp.abs(x), outside, axes, weights)
            return -high, high
        low = -upper_quantile(-x, outside / 2, axes, weights)
        return low, upper_quantile(x, outside / 2, axes, weights)


def upper_quantile(x: Array, share: float, axes: tuple[int, ...], weights: Array | None = None) -> Array:
    """The value above which a `share` of the weight lies, over `axes` (kept); NaN if `x` holds one.

    With n values (the total weight) it lies share*(n-1) places below the largest, linearly between two values:
    numpy's percentile 100*(1-share) of each value repeated as often as it weighs. Counted from the top, where the
    share is small, so that float32 is exact enough for a share of 1e-6.
    """
    kept = tuple(1 if a - x.ndim in axes else n for a, n in enumerate(x.shape))
    rows = inside_last(x, axes)
    if weights is None:
        ordered = -jnp.sort(-rows, axis=-1)
        place = share * (rows.shape[-1] - 1)
        first, part = int(place), jnp.float32(place - int(place))
        value = ordered[..., first]
        after = ordered[..., min(first + 1, rows.shape[-1] - 1)]
    else:
        w = inside_last(jnp.broadcast_to(weights, x.shape), axes)
        order = jnp.argsort(-rows, axis=-1)
        ordered = jnp.take_along_axis(rows, order, axis=-1)
        passed = jnp.cumsum(jnp.take_along_axis(w, order, axis=-1), axis=-1)
        place = jnp.maximum(jnp.float32(share) * (passed[..., -1:] - 1), 0)
        first = jnp.floor(place)
        part = (place - first)[..., 0]
        value, after = (
            jnp.take_along_axis(ordered, _count(passed <= k, rows.shape[-1]), axis=-1)[..., 0]
            for k in (first, first + 1)
        )
    # Not where both ends agree: two infinities differ by NaN.
    value = jnp.where((value == after) | (part == 0), value, value + part * (after - value))
    return jnp.where(jnp.any(jnp.isnan(rows), axis=-1), jnp.float32(jnp.nan), value).reshape(kept)


def inside_last(x: Array, axes: tuple[int, ...]) -> Array:
    """`axes` as one last axis."""
    inside = [x.ndim + a for a in axes]
    outside = [a for a in range(x.ndim) if a not in inside]
    return x.transpose(*outside, *inside).reshape(*(x.shape[a] for a in outside), -1)


def _count(below: Array, n: int) -> Array:
    return jnp.minimum(jnp.sum(below, axis=-1, keepdims=True, dtype=jnp.int32), n - 1)
