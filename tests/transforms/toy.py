"""A small residual network as a plain function, and its pieces done by hand."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp

from tests import draw

LAYERS, WIDTH, HIDDEN, TOKENS = 3, 16, 32, 24


def params(key: int = 0) -> dict:
    seeds = itertools.count(100 * key)

    def normal(*shape: int) -> jax.Array:
        return draw.normal(next(seeds), *shape, scale=shape[0] ** -0.5)

    layers = {str(i): {"up": normal(WIDTH, HIDDEN), "down": normal(HIDDEN, WIDTH)} for i in range(LAYERS)}
    return {"layers": layers, "gain": jnp.linspace(0.5, 1.5, WIDTH)}


@jax.jit
def block(p: dict, x: jax.Array) -> jax.Array:
    return x + jnp.tanh(x @ p["up"]) @ p["down"]


def model(p: dict, x: jax.Array) -> jax.Array:
    for i in range(LAYERS):
        x = block(p["layers"][str(i)], x)
    return x * p["gain"][None]


def batches(n: int = 3, key: int = 7) -> list[jax.Array]:
    scale = jnp.linspace(0.2, 3.0, WIDTH)[None]
    return [draw.normal(100 * key + i, TOKENS, WIDTH) * scale for i in range(n)]


def inputs_of(p: dict, layer: int, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `up` and `down` of a layer read."""
    for i in range(layer):
        x = block(p["layers"][str(i)], x)
    return x, jnp.tanh(x @ p["layers"][str(layer)]["up"])
