"""What a statistic is: a monoid over the rows (tokens) of a matrix, so that any loop can carry it.

Laws, tested for each: `merge` is associative and commutative, `init` is its identity, and `update(v, x)` equals
`merge(v, update(init, x))`. So how tokens are split over microbatches or devices changes nothing but float rounding.
"""

from __future__ import annotations

from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp

Value = Any  # a pytree of float32 / uint32 arrays, batch axes leading


@runtime_checkable
class Statistic(Protocol):
    """A frozen (hashable) description; values are pytrees whose leading axes are batch axes (experts, layers)."""

    @property
    def name(self) -> str:
        """The key under which observe() files the value."""
        ...

    def init(self, features: int, batch: tuple[int, ...] = ()) -> Value:
        """The identity of `merge` for rows of `features` numbers."""
        ...

    def update(self, value: Value, x: Any, weights: jax.Array | None = None) -> Value:
        """Take in rows x [*batch, tokens, features]; `weights` [*batch, tokens] >= 0, 0 hides a row.

        A paired statistic (cross_gram) takes a tuple of two such x.
        """
        ...

    def merge(self, a: Value, b: Value) -> Value:
        """The statistic of both sets of rows."""
        ...

    def result(self, value: Value) -> Any:
        """The number a user wants (a mean is kept as a sum and a count)."""
        ...


def rows(x: jax.Array, weights: jax.Array | None) -> jax.Array:
    """Float32 x with hidden rows set to zero, so that an inf or NaN in padding never reaches a sum."""
    x = x.astype(jnp.float32)
    if weights is None:
        return x
    if weights.shape != x.shape[:-1]:
        raise ValueError(
            f"weights of shape {weights.shape} do not match rows of shape {x.shape[:-1]}: one weight a token"
        )
    return jnp.where((weights > 0)[..., None], x, jnp.zeros((), jnp.float32))


def row_weights(x: jax.Array, weights: jax.Array | None) -> jax.Array:
    """Weights [*batch, tokens] in float32, ones when none are given."""
    return jnp.ones(x.shape[:-1], jnp.float32) if weights is None else weights.astype(jnp.float32)
