"""The moving average of each batch's least and largest value (catalogue B2).

Not a statistic in the sense of `Statistic`: merging is associative but not commutative, and one update counts as one
batch. In a run, where batches come in their order, one after the other, it is the average the observers of training
frameworks keep; a site that is reached several times in a batch counts each time.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qjax.statistics.extrema import Max, Min
from qjax.statistics.points import Points


class Moving(NamedTuple):
    """A sequence of batches, as what it does to the average before it (float32, ends stacked along the axis before K).

    Alone its average is decay * first + rest; behind others with average m, decay * (m + rate (first - m)) + rest.
    seen: [*batch, 1, 1], 0 or 1; first, rest: [*batch, 2, K]; decay: [*batch, 1, 1].
    """

    seen: jax.Array
    first: jax.Array
    decay: jax.Array
    rest: jax.Array


@dataclass(frozen=True)
class MovingAverage:
    """m <- (1 - rate) m + rate * end of the batch, begun at the first batch; the result is (low, high) [*batch, K]."""

    rate: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.rate <= 1:
            raise ValueError(f"MovingAverage: rate must lie in (0, 1], got {self.rate}")

    @property
    def name(self) -> str:
        return "moving_average"

    def init(self, features: int, batch: tuple[int, ...] = ()) -> Moving:
        one, ends = jnp.zeros((*batch, 1, 1), jnp.float32), jnp.zeros((*batch, 2, features), jnp.float32)
        return Moving(one, ends, one + 1, ends)

    def update(self, value: Moving, x: jax.Array, weights: jax.Array | None = None) -> Moving:
        empty = self.init(x.shape[-1], x.shape[:-2])
        ends = [s.update(s.init(x.shape[-1], x.shape[:-2]), x, weights) for s in (Min(), Max())]
        first = jnp.stack(ends, axis=-2)
        seen = (first[..., :1, :1] < jnp.inf) | jnp.isnan(first[..., :1, :1])  # +inf is the minimum of no token
        batch = empty._replace(seen=seen.astype(jnp.float32), first=jnp.where(seen, first, jnp.zeros_like(first)))
        return self.merge(value, batch)

    def merge(self, a: Moving, b: Moving) -> Moving:
        """The batches of `a` and then those of `b`."""
        rate, rest = jnp.float32(self.rate), jnp.float32(1 - self.rate)
        both = Moving(a.seen, a.first, b.decay * rest * a.decay, b.decay * (rest * a.rest + rate * b.first) + b.rest)
        only = jax.tree.map(lambda of_a, of_b: jnp.where(b.seen > 0, of_b, of_a), a, b)
        return jax.tree.map(lambda x, y: jnp.where((a.seen > 0) & (b.seen > 0), x, y), both, only)

    def result(self, value: Moving) -> tuple[jax.Array, jax.Array]:
        """NaN where no token was seen."""
        ends = value.decay * value.first + value.rest
        ends = jnp.where(value.seen > 0, ends, jnp.full_like(ends, jnp.nan))
        return ends[..., 0, :], ends[..., 1, :]

    def points(self, value: tuple[jax.Array, jax.Array]) -> Points:
        """The averages as extremes."""
        return Points.extremes(*value)
