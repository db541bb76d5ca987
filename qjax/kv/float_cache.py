"""The identity codec: keys and values as they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from qjax.kv.attention import MASKED, grouped_mix, grouped_scores, visible
from qjax.kv.slots import store


class FloatState(NamedTuple):
    """What a `FloatCache` has stored."""

    values: Array  # [batch, heads, capacity, dim]
    slots: Array  # int32 [batch, capacity]: the position in each slot, -1 where empty


@dataclass(frozen=True)
class FloatCache:
    """Keys or values held in a float type; the codec every other one is compared with.

    >>> import jax.numpy as jnp
    >>> cache = FloatCache()
    >>> state = cache.append(cache.init(1, 4, 1, 2), jnp.ones((1, 2, 1, 2)), jnp.array([[-1, 0]]))
    >>> cache.decode(state)[1].tolist()
    [[0, -1, -1, -1]]
    """

    dtype: str = "float32"
    exact_prefix: int = 0
    window: int = 0

    def bits(self, dim: int) -> float:
        """Stored bits per element, whatever the size of the heads."""
        del dim
        return 8.0 * jnp.dtype(self.dtype).itemsize

    def init(self, batch: int, capacity: int, heads: int, dim: int) -> FloatState:
        """An empty state; see `Cache`."""
        values = jnp.zeros((batch, heads, capacity, dim), self.dtype)
        return FloatState(values, jnp.full((batch, capacity), -1, jnp.int32))

    def append(self, state: FloatState, x: Array, positions: Array) -> FloatState:
        """Store x [batch, tokens, heads, dim] at int32 `positions` [batch, tokens]; slot and position agree.

        Negative positions and positions beyond the capacity are not stored.
        """
        return FloatState(*store(state.values, state.slots, x.astype(state.values.dtype), positions))

    def scores(self, state: FloatState, q: Array, positions: Array) -> Array:
        """Scores of q against every slot; see `Cache`."""
        s = grouped_scores(q, state.values.astype(jnp.float32))
        return jnp.where(visible(positions, state.slots), s, jnp.full_like(s, MASKED))

    def mix(self, state: FloatState, p: Array) -> Array:
        """Weighted sums of the stored values; see `Cache`."""
        return grouped_mix(p, state.values.astype(jnp.float32))

    def decode(self, state: FloatState) -> tuple[Array, Array]:
        """The stored values [batch, capacity, heads, dim] and positions; see `Cache`."""
        return state.values.transpose(0, 2, 1, 3).astype(jnp.float32), state.slots
