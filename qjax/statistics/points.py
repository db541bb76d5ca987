"""Weighted values that stand for everything a statistic has seen: what ranges are estimated from in calibration."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp


class Points(NamedTuple):
    """Values, how many entries of each channel lie at them, and the least and largest entry of each channel.

    x       : float32 [*batch, S, K], or [*batch, S, 1] where all channels share the values.
    weights : float32 [*batch, S, K], or [*batch, S, 1] for all channels together.
    low     : float32 [*batch, 1, K or 1]; high likewise.

    `pooled` and `channels` make of them what `qjax.fit` takes: values between the ends, and the ends with weight 0.
    """

    x: jax.Array
    weights: jax.Array
    low: jax.Array
    high: jax.Array

    @classmethod
    def of(cls, x: jax.Array, weights: jax.Array) -> Points:
        """With the ends of the values that weigh something; 0 where none does."""
        there, x_all = weights > 0, jnp.broadcast_to(x, jnp.broadcast_shapes(x.shape, weights.shape))
        low = jnp.min(jnp.where(there, x_all, jnp.inf), axis=-2, keepdims=True)
        high = jnp.max(jnp.where(there, x_all, -jnp.inf), axis=-2, keepdims=True)
        return cls(x, weights, low, high).between(low, high)

    @classmethod
    def extremes(cls, low: jax.Array, high: jax.Array) -> Points:
        """Nothing but the least and the largest value of each channel, [*batch, K] each."""
        x = jnp.stack([low, high], axis=-2)
        return cls(x, jnp.zeros_like(x), x[..., :1, :], x[..., 1:, :]).between(x[..., :1, :], x[..., 1:, :])

    def between(self, low: jax.Array, high: jax.Array) -> Points:
        """With these ends [*batch, 1, K or 1]; low above high says that nothing was seen: 0."""
        nothing = low > high
        low, high = (jnp.where(nothing, jnp.zeros_like(end), end) for end in (low, high))
        return self._replace(low=low, high=high)

    def pooled(self) -> tuple[jax.Array, jax.Array]:
        """Values and weights [rows, 1] for one scale."""
        low, high = jnp.min(self.low).reshape(1, 1), jnp.max(self.high).reshape(1, 1)
        if self.x.shape[-1] == 1:
            parts = self.x, jnp.sum(self.weights, axis=-1, keepdims=True)
        else:
            parts = self.x, jnp.broadcast_to(self.weights, self.x.shape)
        x, weights = (part.reshape(-1, 1) for part in parts)
        return _bounded(x, weights, low, high)

    def channels(self) -> tuple[jax.Array, jax.Array]:
        """Values and weights [rows, K] for scales of single channels or blocks of them."""
        k = max(part.shape[-1] for part in self)
        x, weights, low, high = (jnp.broadcast_to(p, (*p.shape[:-1], k)).reshape(-1, k) for p in self)
        return _bounded(x, weights, jnp.min(low, axis=0, keepdims=True), jnp.max(high, axis=0, keepdims=True))


def _bounded(x: jax.Array, weights: jax.Array, low: jax.Array, high: jax.Array) -> tuple[jax.Array, jax.Array]:
    """An empty bin beyond the ends stands for no value: it moves to the end. The ends themselves weigh nothing."""
    nan = jnp.isnan(low) | jnp.isnan(high)
    x = jnp.where(nan, jnp.float32(jnp.nan), jnp.clip(x, low, high))
    return jnp.concatenate([x, low, high]), jnp.concatenate([weights, jnp.zeros_like(low), jnp.zeros_like(high)])
