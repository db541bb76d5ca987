"""Sums: how many tokens, their mean and the mean of their magnitude."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp

from qjax.statistics.statistic import row_weights, rows


class Moment(NamedTuple):
    """total: float32 [*batch, K], the weighted sum; tokens: float32 [*batch], the sum of weights."""

    total: jax.Array
    tokens: jax.Array


@dataclass(frozen=True)
class Count:
    """Sum of weights (number of tokens when there are none), float32 [*batch]: exact up to 2**24 tokens."""

    name: str = "count"

    def init(self, features: int, batch: tuple[int, ...] = ()) -> jax.Array:
        return jnp.zeros(batch, jnp.float32)

    def update(self, value: jax.Array, x: jax.Array, weights: jax.Array | None = None) -> jax.Array:
        return value + row_weights(x, weights).sum(-1)

    def merge(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return a + b

    def result(self, value: jax.Array) -> jax.Array:
        return value


@dataclass(frozen=True)
class Mean:
    """Mean of every feature over tokens, [*batch, K]; with `absolute`, of its magnitude (as AWQ and L2QER use it)."""

    absolute: bool = False

    @property
    def name(self) -> str:
        return "mean_abs" if self.absolute else "mean"

    def init(self, features: int, batch: tuple[int, ...] = ()) -> Moment:
        return Moment(jnp.zeros((*batch, features), jnp.float32), jnp.zeros(batch, jnp.float32))

    def update(self, value: Moment, x: jax.Array, weights: jax.Array | None = None) -> Moment:
        w = row_weights(x, weights)
        x = rows(x, weights)
        if self.absolute:
            x = jnp.abs(x)
        if weights is not None:
            x = x * w[..., None]
        return Moment(value.total + x.sum(-2), value.tokens + w.sum(-1))

    def merge(self, a: Moment, b: Moment) -> Moment:
        return Moment(a.total + b.total, a.tokens + b.tokens)

    def result(self, value: Moment) -> jax.Array:
        """NaN where no token was seen: an absent mean is not zero."""
        return value.total / value.tokens[..., None]
