"""Channels of a cache's keys in another order, so that large ones share the blocks of a format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from qjax.operators import Composed, HeadOrder, Map
from qjax.trace.topology import Scores


def sorted_blocks(leaves: Mapping[str, Any], pair: Scores, rounding: Map) -> Composed:
    """A tap that rounds keys [..., kv_heads, dim] with the channels of each head sorted, and puts them back.

    Sorted by the norms of their columns in the key projection, largest first: K-sort (Trukhanov and Soloveychik 2024,
    arXiv:2403.20137; catalogue N5). A runtime leaves keys and queries in that order, which is in the weights and in the
    table of RoPE's angles and costs nothing; scores are the same.

    Raises:
        ValueError: a leaf stacked over layers, which one tap would serve.
    """
    w = jnp.asarray(leaves[pair.k.path]).astype(jnp.float32)
    if w.ndim != 2:
        raise ValueError(
            f"cache_quantize: {pair.k.path} {w.shape} holds several layers, whose keys have one tap for all; unstack "
            "them (qjax.models.unstack_layers), or give ordered=False"
        )
    norms = jnp.linalg.norm(jnp.moveaxis(w, pair.k.axis, -1), axis=0).reshape(pair.kv_heads, pair.head_dim)
    order = jnp.argsort(-norms, axis=-1, stable=True).astype(jnp.int32)
    return Composed((HeadOrder(order), rounding, HeadOrder(jnp.argsort(order, axis=-1).astype(jnp.int32))))
