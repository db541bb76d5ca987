"""Ranges found by a grid search for the least error (catalogue B5)."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array, lax

from qjax.formats.format import Format
from qjax.ranges.range import Project, extremes


@dataclass(frozen=True)
class mse:
    """Of `points` shrunken min-max ranges, 1 - shrink*i/points of the full one, the one with the least error.

    That is the sum of weight |error|^norm as the format would decode: any element, scale storage and offset. GPTQ's own
    search uses `norm=2.4`. Ties go to the wider range, so an exact block stays exact. A block with a NaN keeps its full
    range, which is NaN.
    """

    points: int = 40
    shrink: float = 0.8
    norm: float = 2.0

    def __post_init__(self) -> None:
        if self.points < 1 or not 0 < self.shrink < 1 or not self.norm > 0:
            raise ValueError(f"mse needs points >= 1, 0 < shrink < 1 and norm > 0, got {self}")

    def __call__(
        self, x: Array, axes: tuple[int, ...], fmt: Format, project: Project, weights: Array | None = None
    ) -> tuple[Array, Array]:
        low, high = extremes(x, axes, fmt)
        # Errors relative to the range: |error|^norm of tiny weights would underflow.
        unit = jnp.maximum(jnp.maximum(-low, high), jnp.float32(jnp.finfo(jnp.float32).tiny))

        def loss(factor: Array) -> Array:
            error = jnp.abs(project(low * factor, high * factor) - x) / unit
            error = error**self.norm if self.norm != 2 else error * error
            return jnp.sum(error if weights is None else error * weights, axis=axes, keepdims=True)

        def body(i: Array, best: tuple[Array, Array]) -> tuple[Array, Array]:
            factor = jnp.float32(1) - jnp.float32(self.shrink / self.points) * i.astype(jnp.float32)
            error = loss(factor)
            better = error < best[0]
            return jnp.where(better, error, best[0]), jnp.where(better, factor, best[1])

        one = jnp.float32(1)
        _, factor = lax.fori_loop(1, self.points, body, (loss(one), jnp.ones_like(high)))
        return low * factor, high * factor
