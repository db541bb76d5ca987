"""A small residual network as a plain function, and its pieces done by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp

LAYERS, WIDTH, HIDDEN, TOKENS = 3, 16, 32, 24


def params(key: int = 0) -> dict:
    keys = iter(jax.random.split(jax.random.key(key), 2 * LAYERS))

    def normal(*shape: int) -> jax.Array:
        return jax.random.normal(next(keys), shape) / jnp.sqrt(jnp.float32(shape[0]))

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
    return [jax.random.normal(k, (TOKENS, WIDTH)) * scale for k in jax.random.split(jax.random.key(key), n)]


def inputs_of(p: dict, layer: int, x: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `up` and `down` of a layer read."""
    for i in range(layer):
        x = block(p["layers"][str(i)], x)
    return x, jnp.tanh(x @ p["layers"][str(layer)]["up"])
