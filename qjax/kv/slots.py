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
    if len(positions) == 1:
        # Without the axis of one, which XLA:CPU takes off the products that read this: a write it sees in another
        # shape than they do is done twice, in copies (see `generate`, which carries it so).
        held = jax.tree.map(lambda old, part: _set(old[0], slot[0], part[0].swapaxes(0, 1)), held, new)
        return held, slots[0].at[slot[0]].set(positions[0], mode="drop")[None]
    row = jnp.arange(len(positions))[:, None]
    # Indexed axes come first where a slice lies between them: heads behind tokens, as the new ones have them.
    held = jax.tree.map(lambda old, part: old.at[row, :, slot].set(part, mode="drop"), held, new)
    return held, slots.at[row, slot].set(positions, mode="drop")


def _set(old: Array, slot: Array, part: Array) -> Array:
    """One row of the batch: [heads, tokens, ...] into [heads, capacity, ...], with an axis of one in front again."""
    return old.at[:, slot].set(part, mode="drop")[None]
