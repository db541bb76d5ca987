"""Ranges that leave out a fixed share of the values (catalogue B3)."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from qjax.ranges.range import Project


@dataclass(frozen=True)
class percentile:
    """The range that holds `p` percent of a block: the p-th percentile of |x|, or (100-p)/2 percent off each end.

    >>> import qjax.ranges
    >>> low, high = percentile(50.0)(jnp.arange(5.0), (-1,), True, lambda low, high: low)
    >>> high.tolist()
    [2.0]
    """

    p: float = 99.9

    def __post_init__(self) -> None:
        if not 0 < self.p <= 100:
            raise ValueError(f"percentile p must lie in (0, 100], got {self.p}")

    def __call__(self, x: Array, axes: tuple[int, ...], symmetric: bool, project: Project) -> tuple[Array, Array]:
        if symmetric:
            high = jnp.percentile(jnp.abs(x), self.p, axis=axes, keepdims=True)
            return -high, high
        tail = (100 - self.p) / 2
        low = jnp.percentile(x, tail, axis=axes, keepdims=True)
        return low, jnp.percentile(x, 100 - tail, axis=axes, keepdims=True)
