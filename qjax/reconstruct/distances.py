"""How far what a stage puts out is from what it should: float32 scalars over all floating leaves of two equal trees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp


def squared_distance(outputs: Any, targets: Any) -> jax.Array:
    """Sum over leaves of the mean squared difference."""
    return _total(jnp.mean(jnp.square(a - b)) for a, b in _pairs(outputs, targets))


def squared_distance_and_kl(outputs: Any, targets: Any) -> jax.Array:
    """`squared_distance` plus KL(softmax(target) || softmax(output)) over features, mean over tokens (CBQ, eq. 8)."""

    def divergence(a: jax.Array, b: jax.Array) -> jax.Array:
        log_p, log_q = jax.nn.log_softmax(b), jax.nn.log_softmax(a)
        return jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))

    return squared_distance(outputs, targets) + _total(divergence(a, b) for a, b in _pairs(outputs, targets))


def squared_distance_and_cosine(outputs: Any, targets: Any) -> jax.Array:
    """`squared_distance` minus the log of the mean cosine over tokens of each leaf [..., channels] (ABQ-LLM)."""

    def turned(a: jax.Array, b: jax.Array) -> jax.Array:
        sizes = jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1)
        return -jnp.log(jnp.abs(jnp.mean(jnp.sum(a * b, axis=-1) / jnp.maximum(sizes, 1e-8))))

    return squared_distance(outputs, targets) + _total(turned(a, b) for a, b in _pairs(outputs, targets) if a.ndim)


def distribution_distance(outputs: Any, targets: Any) -> jax.Array:
    """Mean over channels of |mean - mean'| + |variance - variance'|, of every leaf [..., tokens, channels]."""

    def moments(a: jax.Array, b: jax.Array) -> jax.Array:
        a, b = (v.reshape(-1, v.shape[-1]) for v in (a, b))
        return jnp.mean(jnp.abs(a.mean(0) - b.mean(0)) + jnp.abs(a.var(0) - b.var(0)))

    return _total(moments(a, b) for a, b in _pairs(outputs, targets) if a.ndim > 1)


def floating(tree: Any) -> list[jax.Array]:
    """The floating leaves of a tree, as float32."""
    return [a.astype(jnp.float32) for a in jax.tree.leaves(tree) if jnp.issubdtype(a.dtype, jnp.floating)]


def _pairs(outputs: Any, targets: Any) -> Iterator[tuple[jax.Array, jax.Array]]:
    return zip(floating(outputs), floating(targets), strict=True)


def _total(parts: Iterator[jax.Array]) -> jax.Array:
    return sum(parts, jnp.float32(0))
