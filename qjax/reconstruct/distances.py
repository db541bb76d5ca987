"""How far what a stage puts out is from what it should: float32 scalars over all floating leaves of two equal trees."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp


def squared_distance(outputs: Any, targets: Any) -> jax.Array:
    """Sum over leaves of the mean squared difference."""
    return _total(jnp.mean(jnp.square(a - b)) for a, b in _pairs(outputs, targets))


def weighted_squared_distance(outputs: Any, targets: Any, weights: Any) -> jax.Array:
    """Sum over leaves of the mean of weight times squared difference; `weights` is a tree of the same structure."""
    triples = zip(*map(jax.tree.leaves, (outputs, targets, weights)), strict=True)
    return _total(
        jnp.mean(w * jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)))
        for a, b, w in triples
        if jnp.issubdtype(a.dtype, jnp.floating)
    )


def sample_weights(sensitivities: Any) -> Any:
    """One weight a sample for leaves [samples, ..., channels]: the largest over channels of the mean between them.

    EPTQ's sample-layer attention (arXiv:2309.11531; catalogue D9), of the squared slopes of a model's outputs; leaves
    of fewer axes keep their own.
    """

    def one(s: jax.Array) -> jax.Array:
        if s.ndim < 2:
            return s
        return jnp.max(jnp.mean(s, axis=tuple(range(1, s.ndim - 1)), keepdims=True), axis=-1, keepdims=True)

    return jax.tree.map(one, sensitivities)


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
