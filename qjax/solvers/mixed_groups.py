"""Which groups of input channels deserve more bits than the others of the same matrix (catalogue E24).

Li et al., "Enabling fast 2-bit LLM on GPUs: memory alignment and asynchronous dequantization", 2023 (arXiv:2311.16442):
most groups take 2 bits and a small share of groups, those with the largest range (in later versions: range and
Hessian), 4 bits. Here a group is chosen for all outputs together, so that each width is one contiguous array.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array


def sensitivity(w: Array, group: int, gram: Array | None = None) -> Array:
    """Sum over outputs of the squared range of each group of `w [K, N]`, times its mean input square with `gram`.

    Returns `[K / group]`, float32.

    Raises:
        ValueError: groups that do not divide K.
    """
    rows = w.shape[0]
    if rows % group:
        raise ValueError(f"groups of {group} do not divide {rows} input channels; give a divisor")
    cut = w.astype(jnp.float32).reshape(rows // group, group, -1)
    score = jnp.sum(jnp.square(jnp.max(cut, axis=1) - jnp.min(cut, axis=1)), axis=1)
    return score if gram is None else score * jnp.mean(jnp.diagonal(gram).reshape(-1, group), axis=1)


def order(score: Array, group: int, chosen: int) -> tuple[Array, Array]:
    """The channels of the `chosen` groups of highest score, and the others, both ascending and int32."""
    count = score.shape[0]
    rank = jnp.argsort(-score, stable=True)
    channels = jnp.arange(group, dtype=jnp.int32)[None, :]

    def spread(groups: Array) -> Array:
        return (jnp.sort(groups).astype(jnp.int32)[:, None] * jnp.int32(group) + channels).reshape(-1)

    return spread(rank[:chosen]), spread(rank[chosen:count])
