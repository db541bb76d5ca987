"""The ranges that hold every value (catalogue B1), and a share of them."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from qjax.formats.format import Format
from qjax.ranges.range import Project, extremes
from qjax.ranges.reductions import ends, largest_magnitude


def minmax(
    x: Array, axes: tuple[int, ...], fmt: Format, project: Project, weights: Array | None = None
) -> tuple[Array, Array]:
    """Least and largest value of each block; NaN if it holds one."""
    return ends(x, axes)


def absmax(
    x: Array, axes: tuple[int, ...], fmt: Format, project: Project, weights: Array | None = None
) -> tuple[Array, Array]:
    """-max|x|, max|x| of each block; NaN if it holds one."""
    return largest_magnitude(x, axes)


@dataclass(frozen=True)
class shrunk:
    """The range that holds every value, both ends times `ratio`: the clipping ratio of QuaRot, DuQuant and Atom.

    >>> from qjax.formats import parse
    >>> low, high = shrunk(0.9)(jnp.array([10.0, -3.0]), (-1,), parse("int8"), lambda low, high: low)
    >>> round(float(low[0]), 4), round(float(high[0]), 4)
    (-9.0, 9.0)
    """

    ratio: float

    def __post_init__(self) -> None:
        if not 0 < self.ratio <= 1:
            raise ValueError(f"shrunk needs a ratio in (0, 1], got {self.ratio}")

    def __call__(
        self, x: Array, axes: tuple[int, ...], fmt: Format, project: Project, weights: Array | None = None
    ) -> tuple[Array, Array]:
        low, high = extremes(x, axes, fmt)
        return low * jnp.float32(self.ratio), high * jnp.float32(self.ratio)
