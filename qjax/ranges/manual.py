"""A range given by hand (catalogue B7)."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from qjax.formats.format import Format
from qjax.ranges.range import Project


@dataclass(frozen=True)
class fixed:
    """[low, high] whatever the values are: those outside saturate. NaN for a block that holds one.

    >>> from qjax.formats import parse
    >>> low, high = fixed(-255.0, 255.0)(jnp.array([10000.0, 3.0]), (-1,), parse("int8"), lambda low, high: low)
    >>> float(low[0]), float(high[0])
    (-255.0, 255.0)
    """

    low: float
    high: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.low) and math.isfinite(self.high) and self.low < self.high):
            raise ValueError(f"fixed needs finite low < high, got [{self.low}, {self.high}]")

    def __call__(
        self, x: Array, axes: tuple[int, ...], fmt: Format, project: Project, weights: Array | None = None
    ) -> tuple[Array, Array]:
        nan = jnp.any(jnp.isnan(x), axis=axes, keepdims=True)
        low, high = (jnp.where(nan, jnp.float32(jnp.nan), jnp.float32(end)) for end in (self.low, self.high))
        return low, high
