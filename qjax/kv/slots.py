"""Where a token goes: slot and position agree."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array


def store(held: Any, slots: Array, new: Any, positions: Array) -> tuple[Any, Array]:
    """Arrays with the new tokens in place, and the filled slots.

    Args:
        held: a tree of arrays [batch, heads, capacity, ...].
        slots: int32 [batch, capacity], the position in each slot, -1 where empty.
        new: the same tree of the new tokens, [batch, tokens, heads, ...].
        positions: int32 [batch, tokens]; negative ones and those beyond the capacity are not stored.
    """
    capacity = slots.shape[1]
    # A negative index would wrap round to the end; one past the end is dropped.
    slot = jnp.where(positions < 0, jnp.full_like(positions, capacity), positions)
    row = jnp.arange(len(positions))[:, None]
    # Indexed axes come first where a slice lies between them: heads behind tokens, as the new ones have them.
    held = jax.tree.map(lambda old, part: old.at[row, :, slot].set(part, mode="drop"), held, new)
    return held, slots.at[row, slot].set(positions, mode="drop")
