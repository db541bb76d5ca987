"""Largest magnitude, smallest and largest value of every feature: monoids under max and min."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp


def _hide(x: jax.Array, weights: jax.Array | None, identity: float) -> jax.Array:
    x = x.astype(jnp.float32)
    if weights is None:
        return x
    return jnp.where((weights > 0)[..., None], x, jnp.full((), identity, jnp.float32))


def _largest(x: jax.Array, identity: float) -> jax.Array:
    """max over tokens; NaN if there is one, which XLA:CPU's max passes over in a large array."""
    return jnp.where(jnp.isnan(x).any(-2), jnp.float32(jnp.nan), x.max(-2, initial=identity))


@dataclass(frozen=True)
class AbsMax:
    """max |x| over tokens, float32 [*batch, K]; 0 before any token."""

    name: str = "absmax"

    def init(self, features: int, batch: tuple[int, ...] = ()) -> jax.Array:
        return jnp.zeros((*batch, features), jnp.float32)

    def update(self, value: jax.Array, x: jax.Array, weights: jax.Array | None = None) -> jax.Array:
        return self.merge(value, _largest(jnp.abs(_hide(x, weights, 0.0)), 0.0))

    def merge(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.maximum(a, b)

    def result(self, value: jax.Array) -> jax.Array:
        return value


@dataclass(frozen=True)
class Max:
    """max x over tokens, float32 [*batch, K]; -inf before any token."""

    name: str = "max"

    def init(self, features: int, batch: tuple[int, ...] = ()) -> jax.Array:
        return jnp.full((*batch, features), -jnp.inf, jnp.float32)

    def update(self, value: jax.Array, x: jax.Array, weights: jax.Array | None = None) -> jax.Array:
        return self.merge(value, _largest(_hide(x, weights, -jnp.inf), -jnp.inf))

    def merge(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.maximum(a, b)

    def result(self, value: jax.Array) -> jax.Array:
        return value


@dataclass(frozen=True)
class Min:
    """min x over tokens, float32 [*batch, K]; +inf before any token."""

    name: str = "min"

    def init(self, features: int, batch: tuple[int, ...] = ()) -> jax.Array:
        return jnp.full((*batch, features), jnp.inf, jnp.float32)

    def update(self, value: jax.Array, x: jax.Array, weights: jax.Array | None = None) -> jax.Array:
        return self.merge(value, -_largest(-_hide(x, weights, jnp.inf), -jnp.inf))

    def merge(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.minimum(a, b)

    def result(self, value: jax.Array) -> jax.Array:
        return value
