"""Outliers spread inside blocks of channels and dealt out evenly among the blocks: DuQuant (catalogue H4).

Lin et al., "DuQuant: distributing outliers via dual transformation makes stronger quantized LLMs", 2024
(arXiv:2406.01721), section 3.2. A rotation of blocks of n channels is built greedily: each step turns the channel with
the largest magnitude by E_d R Q E_d, where R is orthogonal with first row 1/sqrt(n), Q a random rotation that keeps
the first axis, and E_d swaps the first axis with the outlier's; of all prefixes of the product the one with the
smallest largest magnitude is kept. A permutation then deals channels, by falling size and in zigzag, to the blocks.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


@functools.cache
def spreading(size: int) -> np.ndarray:
    """An orthogonal float32 matrix [size, size] whose first row is 1/sqrt(size): a chain of Givens rotations."""
    matrix = np.eye(size)
    for i in range(size - 1):
        cos, sin = 1 / np.sqrt(i + 2), np.sqrt((i + 1) / (i + 2))
        matrix[[i, i + 1]] = [
            cos * matrix[i] - sin * matrix[i + 1],
            sin * matrix[i] + cos * matrix[i + 1],
        ]
    swap = np.arange(size)
    swap[[0, -1]] = swap[[-1, 0]]
    return matrix[swap][:, swap].astype(np.float32)


@functools.partial(jax.jit, static_argnames="size")
def greedy_rotation(x: jax.Array, key: jax.Array, *, size: int, steps: int | jax.Array) -> jax.Array:
    """The rotation [size, size] of every `size` channels after which x `[tokens, K]` has the least largest magnitude.

    `size` divides K. No steps at all is among the choices, so that the largest magnitude never grows.
    """
    parts = x.astype(jnp.float32).reshape(-1, size)
    inner = jax.random.orthogonal(key, size - 1) if size > 1 else jnp.zeros((0, 0))
    kept = jnp.eye(size, dtype=jnp.float32).at[1:, 1:].set(inner)
    base = _product(jnp.asarray(spreading(size)), kept)

    def step(_: jax.Array, state: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        work, rotation, peak, best = state
        outlier = jnp.argmax(jnp.max(jnp.abs(work), axis=0))
        swap = jnp.arange(size).at[0].set(outlier).at[outlier].set(0)
        turn = base[swap[:, None], swap[None, :]]
        work, rotation = _product(work, turn), _product(rotation, turn)
        now = jnp.max(jnp.abs(work))
        return work, rotation, jnp.minimum(now, peak), jnp.where(now < peak, rotation, best)

    one = jnp.eye(size, dtype=jnp.float32)
    best = lax.fori_loop(jnp.int32(0), jnp.asarray(steps, jnp.int32), step, (parts, one, jnp.max(jnp.abs(parts)), one))[
        -1
    ]
    # Hundreds of products drift off the orthogonal group; one step of Newton's iteration for the polar factor returns.
    return 1.5 * best - 0.5 * _product(best, _product(best.T, best))


def zigzag(magnitude: jax.Array, size: int) -> jax.Array:
    """The order int32 [K] that deals channels of these sizes [K] to K / size blocks: 1, 2, 3, 3, 2, 1, 1, 2, ...

    Inside a block channels stand by falling size.
    """
    blocks = magnitude.shape[-1] // size
    falling = jnp.argsort(-magnitude, stable=True).astype(jnp.int32).reshape(size, blocks)
    backwards = (jnp.arange(size) % 2 == 1)[:, None]
    return jnp.where(backwards, falling[:, ::-1], falling).T.reshape(-1)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")
