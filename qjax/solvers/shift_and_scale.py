"""Channels shifted to the middle of their range, then scaled down to a threshold: Outlier Suppression+ (catalogue G7).

Wei et al., "Outlier suppression+: accurate quantization of large language models by equivalent and effective shifting
and scaling", 2023 (arXiv:2304.09145), section 4: z_j = (max + min) / 2 of channel j and s_j = max(1, max|x_j - z_j| /
t). The threshold t is the one of a grid with which the layer's output, its input (x - z)/s and its weights s W both
rounded, is nearest to (x - z) W.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from qjax.formats.format import Format
from qjax.quantization import fake_quantize

LEAST = 0.1
"""The authors' smallest threshold."""


class Migration(NamedTuple):
    """`shift [K]` is z, `scale [K]` s, `threshold` t; `errors [points]`: the squared output errors of the grid."""

    shift: Array
    scale: Array
    threshold: Array
    errors: Array


@partial(jax.jit, static_argnames=("weights", "inputs", "points", "shift"))
def search(
    ws: Sequence[Array],
    x: Array,
    there: Array,
    low: Array,
    high: Array,
    *,
    weights: Format,
    inputs: Format,
    points: int = 100,
    shift: bool = True,
) -> Migration:
    """Shift and scale of all `ws [K, N_i]` that read tokens `x [S, K]`, of which `there [S]` > 0 count.

    `low`, `high` [K] are the ends of each channel over all data. The grid is geometric, from the largest magnitude (no
    scaling at all) down to 0.1, where the authors' is linear with steps of 0.5 or less: as many points where it
    matters, whatever the size of the largest activation. Without `shift` z is 0.
    """
    z = (low + high) / 2 if shift else jnp.zeros_like(low)
    size = jnp.maximum(high - z, z - low)
    most = jnp.maximum(jnp.max(size), jnp.finfo(jnp.float32).tiny)
    w = jnp.concatenate([w.astype(jnp.float32) for w in ws], axis=-1)
    moved = x - z[None]
    want = jnp.matmul(moved, w, precision="highest")

    def error(t: Array) -> Array:
        s = _scale(size, t)
        rounded_x = fake_quantize(moved / s[None], inputs, axis=-1)
        rounded_w = fake_quantize(s[:, None] * w, weights, axis=-2)
        off = jnp.matmul(rounded_x, rounded_w, precision="highest") - want
        return jnp.sum(jnp.where(there[:, None] > 0, off * off, 0))

    ratio = jnp.minimum(LEAST / most, 1)
    grid = most * ratio ** (jnp.arange(points, dtype=jnp.float32) / max(points - 1, 1))
    errors = lax.map(error, grid)
    t = grid[jnp.argmin(errors)]  # the first of equals: the least scaling
    return Migration(z, _scale(size, t), t, errors)


def _scale(size: Array, t: Array) -> Array:
    return jnp.maximum(size / t, 1)
