"""The plain codec: each token's keys or values of a head rounded to a number format as they are appended.

Catalogue N6.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from qjax.formats import Format, as_format
from qjax.kv.attention import MASKED, grouped_mix, grouped_scores, visible
from qjax.kv.slots import store
from qjax.qarray import QArray
from qjax.quantization import bits_per_weight, dequantize, quantize


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True)
class Stored:
    """A QArray as the arrays it is made of: tracing takes a QArray for a parameter, and this one is data."""

    array: QArray

    def tree_flatten(self) -> tuple[Sequence[Any], Any]:
        """Its arrays, and how they make it up."""
        return jax.tree.flatten(self.array)

    @classmethod
    def tree_unflatten(cls, structure: Any, arrays: Sequence[Any]) -> Stored:
        """The inverse."""
        return cls(jax.tree.unflatten(structure, arrays))


class QuantizedState(NamedTuple):
    """What a `QuantizedCache` has stored."""

    values: Stored  # [batch, heads, capacity, dim], the first three axes batch axes: every token's blocks are its own
    prefix: Array  # float32 [batch, heads, exact_prefix, dim]: the first positions as they came
    slots: Array  # int32 [batch, capacity]: the position in each slot, -1 where empty


@dataclass(frozen=True)
class QuantizedCache:
    """Keys or values in `format`, its blocks along the channels of one head of one token.

    "int8" or "fp8_e4m3" has one scale for each token and head, "int4_g32_affine" a scale and a zero point for each 32
    channels, "mxfp4" the OCP blocks. Nothing depends on a later token, whatever the format: even the tensor scale of
    "nvfp4" is one for each token and head. Catalogue N6.

    The first `exact_prefix` positions, where attention sinks and massive activations sit, are kept in float32 beside
    the codes; `bits` does not count them.

    Raises:
        ValueError: `format` is no known spelling; `exact_prefix` is negative.

    >>> import jax.numpy as jnp
    >>> cache = QuantizedCache("int4")
    >>> state = cache.append(cache.init(1, 4, 1, 2), jnp.array([[[[1.0, 7.5]]]]), jnp.array([[0]]))
    >>> cache.decode(state)[0][0, 0].tolist(), cache.bits(64)
    ([[1.0, 7.0]], 4.25)
    """

    format: Format | str = "int8"
    exact_prefix: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "format", as_format(self.format))
        if self.exact_prefix < 0:
            raise ValueError(f"exact_prefix must not be negative, got {self.exact_prefix}")

    @property
    def window(self) -> int:
        """No latest position is kept in full precision."""
        return 0

    def bits(self, dim: int) -> float:
        """Stored bits per element of heads of `dim` channels, scales included."""
        return float(bits_per_weight(self._encoded(jnp.zeros((1, 1, 1, dim), jnp.float32)).array))

    def init(self, batch: int, capacity: int, heads: int, dim: int) -> QuantizedState:
        """An empty state; see `Cache`."""
        values = self._encoded(jnp.zeros((batch, heads, capacity, dim), jnp.float32))
        prefix = jnp.zeros((batch, heads, min(self.exact_prefix, capacity), dim), jnp.float32)
        return QuantizedState(values, prefix, jnp.full((batch, capacity), -1, jnp.int32))

    def append(self, state: QuantizedState, x: Array, positions: Array) -> QuantizedState:
        """Round and store x [batch, tokens, heads, dim] at int32 `positions` [batch, tokens]; slot and position agree.

        Negative positions and positions beyond the capacity are not stored.
        """
        x = x.astype(jnp.float32)
        (values, prefix), slots = store((state.values, state.prefix), state.slots, (self._encoded(x), x), positions)
        return QuantizedState(values, prefix, slots)

    def scores(self, state: QuantizedState, q: Array, positions: Array) -> Array:
        """Scores of q against every slot; see `Cache`."""
        s = grouped_scores(q, seen_by_attention(state))
        return jnp.where(visible(positions, state.slots), s, jnp.full_like(s, MASKED))

    def mix(self, state: QuantizedState, p: Array) -> Array:
        """Weighted sums of the stored values; see `Cache`."""
        return grouped_mix(p, seen_by_attention(state))

    def decode(self, state: QuantizedState) -> tuple[Array, Array]:
        """The stored values [batch, capacity, heads, dim] and positions; see `Cache`."""
        return seen_by_attention(state).transpose(0, 2, 1, 3), state.slots

    def _encoded(self, x: Array) -> Stored:
        """X [batch, ..., ..., dim] with every row of channels a matter of its own."""
        return Stored(quantize(x, self.format, axis=-1, batch_axes=3))


def seen_by_attention(state: QuantizedState) -> Array:
    """What attention reads: float32 [batch, heads, capacity, dim]."""
    values, exact = dequantize(state.values.array), state.prefix.shape[2]
    return jnp.concatenate([state.prefix, values[:, :, exact:]], axis=2) if exact else values
