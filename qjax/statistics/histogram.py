"""Histogram of all entries of a site, on edges that a first pass fixed (so that histograms of any split merge by +)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qjax.statistics.statistic import row_weights


@dataclass(frozen=True)
class Histogram:
    """Counts float32 [*batch, bins] of entries on equal bins over [low, high]; entries outside fall in the outer bins.

    `Histogram()` has no edges yet: run a first pass over `first_pass` and call `fix`.
    """

    bins: int = 512
    low: float | None = None
    high: float | None = None

    @property
    def name(self) -> str:
        return "histogram"

    @property
    def first_pass(self) -> tuple[str, ...]:
        """The statistics `fix` needs; empty once the edges stand."""
        return () if self.low is not None else ("min", "max")

    def fix(self, first: dict[str, Any]) -> Histogram:
        """The same histogram with edges from {"min": [..., K], "max": [..., K]} of the same site."""
        low, high = float(np.min(first["min"])), float(np.max(first["max"]))
        if not (np.isfinite(low) and np.isfinite(high)):
            raise ValueError(
                f"histogram edges [{low}, {high}] are not finite: the first pass saw no token, or inf / NaN"
            )
        return replace(self, low=low, high=high if high > low else low + 1.0)

    def edges(self) -> np.ndarray:
        """float32 [bins + 1]."""
        low, high = self._range()
        return np.linspace(low, high, self.bins + 1, dtype=np.float32)

    def _range(self) -> tuple[float, float]:
        if self.low is None or self.high is None:
            raise ValueError(
                "this histogram has no edges: Histogram(low=.., high=..), or fix() after a pass over min, max"
            )
        return self.low, self.high

    def init(self, features: int, batch: tuple[int, ...] = ()) -> jax.Array:
        return jnp.zeros((*batch, self.bins), jnp.float32)

    def update(self, value: jax.Array, x: jax.Array, weights: jax.Array | None = None) -> jax.Array:
        low, high = self._range()
        place = (x.astype(jnp.float32) - jnp.float32(low)) * jnp.float32(self.bins / (high - low))
        index = jnp.clip(jnp.floor(place), 0, self.bins - 1).astype(jnp.int32)
        w = jnp.broadcast_to(row_weights(x, weights)[..., None], x.shape)

        def count(index: jax.Array, w: jax.Array) -> jax.Array:
            return jnp.zeros((self.bins,), jnp.float32).at[index.reshape(-1)].add(w.reshape(-1))

        for _ in range(x.ndim - 2):
            count = jax.vmap(count)
        return value + count(index, w)

    def merge(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return a + b

    def result(self, value: jax.Array) -> jax.Array:
        return value
