"""One small decoder-like network written several ways, with equal parameters."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp

from tests import draw

VOCAB, WIDTH, INNER, HEADS, LAYERS = 31, 8, 12, 2, 3
TOKENS = draw.integers(7, 0, VOCAB, 2, 5)


def parameters():
    """{"embed", "layers": {"0": {...}}, "norm", "head"}, kernels [in, out]."""
    seeds = itertools.count()

    def matrix(*shape):
        return draw.normal(next(seeds), *shape, scale=shape[0] ** -0.5)

    def layer():
        attn = {n: matrix(WIDTH, WIDTH) for n in ("q", "k", "v", "o")}
        ffn = {"gate": matrix(WIDTH, INNER), "up": matrix(WIDTH, INNER), "down": matrix(INNER, WIDTH)}
        scale = 1 + 0.1 * matrix(1, WIDTH)[0]
        return {"attn": attn, "ffn": ffn, "attn_norm": scale, "ffn_norm": scale * 0.9}

    layers = {str(i): layer() for i in range(LAYERS)}
    return {"embed": matrix(VOCAB, WIDTH), "layers": layers, "norm": jnp.ones(WIDTH), "head": matrix(WIDTH, VOCAB)}


def stacked(params):
    layers = jax.tree.map(lambda *a: jnp.stack(a), *(params["layers"][str(i)] for i in range(LAYERS)))
    return params | {"layers": layers}


def norm(x, gain):
    return x * jax.lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5) * gain[None, None, :]


def attention(q, k, v, mask):
    b, t, _ = q.shape
    q, k, v = (a.reshape(b, t, HEADS, -1) for a in (q, k, v))
    scores = jnp.where(mask, jnp.einsum("bqhd,bkhd->bhqk", q, k), -1e9)
    return jnp.einsum("bhqk,bkhd->bqhd", jax.nn.softmax(scores, -1), v).reshape(b, t, -1)


def block(p, x, mask):
    h = norm(x, p["attn_norm"])
    mixed = attention(h @ p["attn"]["q"], h @ p["attn"]["k"], h @ p["attn"]["v"], mask)
    x = x + mixed @ p["attn"]["o"]
    h = norm(x, p["ffn_norm"])
    return x + (jax.nn.silu(h @ p["ffn"]["gate"]) * (h @ p["ffn"]["up"])) @ p["ffn"]["down"]


def causal(tokens):
    """A mask that depends on the batch: padding is token 0."""
    t = tokens.shape[1]
    return jnp.tril(jnp.ones((t, t), bool))[None, None] & (tokens != 0)[:, None, None, :]


def loop(layer=block, tied=False):
    """The network with a Python loop over layers."""

    def model(params, tokens):
        x, mask = params["embed"][tokens], causal(tokens)
        for i in range(LAYERS):
            x = layer(params["layers"][str(i)], x, mask)
        x = norm(x, params["norm"])
        return x @ (params["embed"].T if tied else params["head"])

    return model


def scanned(layer=block):
    """The network with a scan over stacked layers."""

    def model(params, tokens):
        mask = causal(tokens)
        x, _ = jax.lax.scan(lambda x, w: (layer(w, x, mask), None), params["embed"][tokens], params["layers"])
        return norm(x, params["norm"]) @ params["head"]

    return model
