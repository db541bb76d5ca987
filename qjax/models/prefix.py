"""A prefix: keys and values that every sequence attends to first, held as parameters of the layers.

A layer with attn/prefix_key (behind RoPE) and attn/prefix_value, each [slots, kv_heads, head_dim], remembers so many
tokens that are never computed again: the attention sinks of PrefixQuant, CushionCache and IntactKV (catalogue I6,
I7, I8). The first token of a sequence then stands at position `slots`. They are leaves like others: they are saved,
trained and counted with the rest, and stay exact behind a quantized cache, which holds what came after them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax import Array


def slots(layer: Mapping[str, Any]) -> int:
    """How many tokens a layer (or a stack of layers) remembers; 0 without a prefix.

    >>> slots({"attn": {}}), slots({"attn": {"prefix_key": jnp.zeros((2, 3, 4))}})
    (0, 2)
    """
    key = layer["attn"].get("prefix_key")
    return 0 if key is None else key.shape[-3]


def behind(positions: Array, count: int) -> Array:
    """Positions [batch, tokens] as they are behind `count` remembered tokens; padding stays negative."""
    return positions if count == 0 else jnp.where(positions < 0, positions, positions + count)


def places(count: int, positions: Array) -> Array:
    """Positions of all slots [batch, count + tokens], for tokens that stand at `positions` behind the prefix."""
    if count == 0:
        return positions
    own = jnp.broadcast_to(jnp.arange(count, dtype=jnp.int32), (positions.shape[0], count))
    return jnp.concatenate([own, positions], axis=1)


def remembered(layer: Mapping[str, Any], name: str, batch: int) -> Array:
    """The prefix's "key" or "value" as attention reads it: float32 [batch, kv_heads, slots, head_dim]."""
    own = jnp.asarray(layer["attn"][f"prefix_{name}"]).astype(jnp.float32).transpose(1, 0, 2)
    return jnp.broadcast_to(own, (batch, *own.shape))


def before(layer: Mapping[str, Any], name: str, x: Array) -> Array:
    """Keys or values x [batch, kv_heads, tokens, head_dim] with those of the prefix in front."""
    return jnp.concatenate([remembered(layer, name, len(x)).astype(x.dtype), x], axis=2) if slots(layer) else x
