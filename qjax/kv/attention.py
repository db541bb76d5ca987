"""Grouped-query attention products that never repeat a key or value head."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import jax.numpy as jnp
from jax import Array

# Finite, so that a row with nothing to see gives a uniform distribution and no NaN; in every other row its exp is zero.
MASKED = -1e30


def grouped_scores(q: Array, k: Array) -> Array:
    """Dot products of queries and keys.

    Args:
        q: [batch, tokens, query heads, dim]; query head h reads key head h // (query heads / heads).
        k: [batch, heads, slots, dim].

    Returns:
        float32 [batch, query heads, tokens, slots].
    """
    batch, tokens, query_heads, dim = q.shape
    heads, slots = k.shape[1], k.shape[2]
    if query_heads % heads:
        raise ValueError(f"{query_heads} query heads cannot share {heads} key heads evenly")
    # Heads first and the group merged with the tokens: one plain matrix product per (batch, key head).
    q = q.reshape(batch, tokens, heads, query_heads // heads, dim).transpose(0, 2, 3, 1, 4)
    q = q.reshape(batch, heads, query_heads // heads * tokens, dim)
    s = jnp.einsum("bkmd,bksd->bkms", q, k, preferred_element_type=jnp.float32)
    return s.reshape(batch, query_heads, tokens, slots)


def grouped_mix(p: Array, v: Array) -> Array:
    """Probabilities [batch, query heads, tokens, slots] times values [batch, heads, slots, dim].

    Returns:
        float32 [batch, tokens, query heads, dim].
    """
    batch, query_heads, tokens, slots = p.shape
    heads, dim = v.shape[1], v.shape[3]
    p = p.reshape(batch, heads, query_heads // heads * tokens, slots)
    y = jnp.einsum("bkms,bksd->bkmd", p, v, preferred_element_type=jnp.float32)
    return y.reshape(batch, query_heads, tokens, dim).transpose(0, 2, 1, 3)


def visible(positions: Array, slots: Array) -> Array:
    """Which slots a query may see: boolean [batch, 1, tokens, slots] from int32 [batch, tokens] and [batch, slots].

    A slot is seen when it is filled (not negative) and not later than the query.

    >>> import jax.numpy as jnp
    >>> visible(jnp.array([[1]]), jnp.array([[0, 1, 2, -1]]))[0, 0, 0].tolist()
    [True, True, False, False]
    """
    query, slot = positions[:, None, :, None], slots[:, None, None, :]
    return (slot >= 0) & (slot <= query)


def causal_parts(tokens: int) -> list[tuple[int, int, int]]:
    """Queries start to stop of `tokens` positions in order, and the slots they may see: [(start, stop, slots), ...].

    Four parts compute 5/8 of the square that one part computes, and more than four gain little (on 2 cores at 512
    tokens no time at all) for a larger program. Short sequences stay whole.

    >>> causal_parts(512)
    [(0, 128, 128), (128, 256, 256), (256, 384, 384), (384, 512, 512)]
    """
    count = 4 if tokens >= 128 else 1
    cuts = [i * tokens // count for i in range(count + 1)]
    return [(start, stop, stop) for start, stop in itertools.pairwise(cuts)]


def square(parts: Sequence[Array]) -> Array:
    """Rows of [batch, heads, tokens, slots] with fewer slots first, zeros in place of the rest, as one array."""
    slots = parts[-1].shape[-1]
    wide = [jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, slots - x.shape[-1]))) for x in parts]
    return jnp.concatenate(wide, axis=2)
