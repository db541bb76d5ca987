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


@dataclass(frozen=True)
class AbsMax:
    """max |x| over tokens, float32 [*batch, K]; 0 before any token."""

    name: str = "absmax"

    def init(self, features: int, batch: tuple[int, ...] = ()) -> jax.Array:
        return jnp.zeros((*batch, features), jnp.float32)

    def update(self, value: jax.Array, x: jax.Array, weights: jax.Array | None = None) -> jax.Array:
        return self.merge(value, jnp.abs(_hide(x, weights, 0.0)).max(-2, initial=0.0))

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
        return self.merge(value, _hide(x, weights, -jnp.inf).max(-2, initial=-jnp.inf))

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
        return self.merge(value, _hide(x, weights, jnp.inf).min(-2, initial=jnp.inf))

    def merge(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return jnp.minimum(a, b)

    def result(self, value: jax.Array) -> jax.Array:
        return value
