"""Input channels clustered by their ranges, so that each cluster has a scale of its own: RPTQ (catalogue G9).

Yuan et al., "RPTQ: reorder-based post-training quantization for large language models", 2023 (arXiv:2304.01089),
section 3.3: k-means of the points (max, min) of the channels; channels of a cluster then lie side by side, and share
one scale and one zero point.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import lax


@functools.partial(jax.jit, static_argnames=("count", "iterations"))
def by_range(low: jax.Array, high: jax.Array, *, count: int, iterations: int = 50) -> jax.Array:
    """The cluster int32 [K] of each channel with these ends [K], numbered from 0 to `count` - 1.

    Lloyd's iterations from centres that lie far apart: the channel nearest the mean, then always the one farthest from
    those chosen, so that outliers have clusters of their own (the authors take the best of ten random starts). The sum
    of squared distances never rises; a cluster that loses its channels keeps its centre.
    """
    points = jnp.stack([high, low], axis=-1).astype(jnp.float32)

    def distances(centres: jax.Array) -> jax.Array:
        difference = points[:, None, :] - centres[None]
        return jnp.sum(difference * difference, axis=-1)

    first = points[jnp.argmin(distances(jnp.mean(points, axis=0, keepdims=True))[:, 0])]

    def add(i: jax.Array, centres: jax.Array) -> jax.Array:
        return centres.at[i].set(points[jnp.argmax(jnp.min(distances(centres), axis=1))])

    def move(_: jax.Array, centres: jax.Array) -> jax.Array:
        member = jax.nn.one_hot(jnp.argmin(distances(centres), axis=1), count, dtype=jnp.float32)
        held = jnp.sum(member, axis=0)[:, None]
        means = jnp.matmul(member.T, points, precision="highest") / jnp.maximum(held, 1)
        return jnp.where(held > 0, means, centres)

    centres = lax.fori_loop(1, count, add, jnp.broadcast_to(first, (count, 2)))
    centres = lax.fori_loop(0, iterations, move, centres)
    return jnp.argmin(distances(centres), axis=1).astype(jnp.int32)


@functools.partial(jax.jit, static_argnames="count")
def shared_ends(low: jax.Array, high: jax.Array, cluster: jax.Array, *, count: int) -> tuple[jax.Array, jax.Array]:
    """The ends [K] of each channel's cluster."""
    least = jax.ops.segment_min(low, cluster, count)
    most = jax.ops.segment_max(high, cluster, count)
    return least[cluster], most[cluster]
