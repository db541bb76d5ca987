"""The ranges that hold every value (catalogue B1)."""

from __future__ import annotations

from jax import Array

from qjax.formats.format import Format
from qjax.ranges.range import Project
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
