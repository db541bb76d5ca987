"""Mixtures of experts: every token passes the few FFNs that a router chooses for it.

Parameters of one layer, kernels [in, out]:

    router [width, experts]; experts/{gate, up, down} [experts, in, out];
    where the architecture has a shared expert also shared/{gate, up, down} and shared_gate [width, 1].

A leaf holds all experts of a layer. Tokens are sorted by expert and one ragged product multiplies each run of them by
the matrix of its expert, so that no token is dropped and a leaf is measured and quantized as a batch of matrices.

Sites, all below ffn/: "routing" (the router's softmax, [tokens, experts]), "experts/product" (what down reads, one row
for each token and expert that it passes, sorted by expert), "shared/product".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from qjax.models.architecture import Architecture
from qjax.models.feed_forward import ACTIVATIONS, feed_forward


def mixture(arch: Architecture, ffn: Mapping[str, Any], x: Array) -> Array:
    """What the experts of one layer make of x [batch, tokens, width], and the shared one where there is one.

    The router's probabilities are a softmax over all experts; the largest `active` of a token weigh its experts, after
    division by their sum if `arch.experts.normalized` (a softmax over the chosen). Mixtral (Jiang et al. 2024,
    arXiv:2401.04088) normalizes, Qwen's families as their settings say; the shared expert behind a sigmoid is
    Qwen2-MoE's.
    """
    e = arch.experts
    assert e is not None
    tokens = x.reshape(-1, x.shape[-1])
    routing = checkpoint_name(jax.nn.softmax(tokens @ ffn["router"], axis=-1), "ffn/routing")
    shares, chosen = lax.top_k(routing, e.active)
    if e.normalized:
        shares = shares / jnp.broadcast_to(jnp.sum(shares, axis=-1, keepdims=True), shares.shape)
    # Entry i of the flat choice is a passage of token i // active through one expert; `order` sorts them by expert.
    passages = chosen.reshape(-1)
    order = jnp.argsort(passages, stable=True)
    sizes = jnp.bincount(passages, length=e.count).astype(jnp.int32)
    rows = tokens[order // e.active]
    experts = ffn["experts"]

    def through(name: str, rows: Array) -> Array:
        return lax.ragged_dot(rows, experts[name], sizes)

    inner = ACTIVATIONS[arch.activation](through("gate" if arch.gated else "up", rows))
    product = checkpoint_name(inner * through("up", rows) if arch.gated else inner, "ffn/experts/product")
    back = through("down", product)[jnp.argsort(order)].reshape(*chosen.shape, -1)
    y = jnp.sum(back * jnp.broadcast_to(shares[:, :, None], back.shape), axis=1)
    if e.shared:
        gate = jnp.broadcast_to(jax.nn.sigmoid(tokens @ ffn["shared_gate"]), y.shape)
        y = y + gate * feed_forward(arch, ffn["shared"], tokens, "ffn/shared/product")
    return y.reshape(x.shape)
