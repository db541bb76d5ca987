"""S2FP8: eight-bit floats after a power law that puts a tensor's logarithms into their range (catalogue A16).

Cambier et al., "Shifted and squeezed 8-bit floating point format", ICLR 2020 (arXiv:2001.05674), eq. 1-5.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from qjax.formats.elements import E5M2

TOP = 15.0
"""log2 of what the largest magnitude becomes; the mean of log2|y| becomes 0."""


class ShiftedSqueezed(NamedTuple):
    """Codes (E5M2) of y = sign(x) 2^shift |x|^squeeze, and the two numbers of the tensor (float32)."""

    codes: Array
    squeeze: Array
    shift: Array


def to_s2fp8(x: Array) -> ShiftedSqueezed:
    """The tensor `x` (any shape and float dtype; vmap for one law a slice).

    squeeze = 15/(m - mu), shift = -squeeze mu, with m and mu the largest and the mean of log2|x| over its nonzeros. If
    these have one magnitude it becomes 1, with squeeze 1; a tensor of zeros has squeeze 1 and shift 0. Infinities count
    as the largest float32; a NaN makes every value NaN. Magnitudes below float32's normal ones are zeros.
    """
    limits = np.finfo(np.float32)
    size = jnp.minimum(jnp.abs(x.astype(jnp.float32)), limits.max)
    there = ~(size < limits.tiny)
    log = jnp.log2(jnp.where(there, size, jnp.float32(1)))
    count = jnp.maximum(jnp.sum(there), 1).astype(jnp.float32)
    mean = jnp.sum(log) / count
    highest = jnp.max(jnp.where(there, log, -jnp.inf), initial=-jnp.inf)
    width = highest - mean
    # Equal logarithms have a mean that is off by rounding alone.
    squeeze = jnp.where(width > jnp.float32(1e-5) * jnp.abs(mean), jnp.float32(TOP) / width, jnp.float32(1))
    shift = -squeeze * mean
    y = jnp.sign(x).astype(jnp.float32) * jnp.where(there, jnp.exp2(squeeze * (log - mean)), jnp.float32(0))
    bad = jnp.isnan(mean)
    squeeze, shift = (jnp.where(bad, jnp.float32(jnp.nan), v) for v in (squeeze, shift))
    return ShiftedSqueezed(E5M2.encode(jnp.where(bad, jnp.float32(jnp.nan), y)), squeeze, shift)


def from_s2fp8(q: ShiftedSqueezed) -> Array:
    """The values as float32: sign(y) (|y| 2^-shift)^(1/squeeze).

    >>> from_s2fp8(to_s2fp8(jnp.array([1.0, -2.0, 0.0, 4.0]))).tolist()
    [1.0, -2.0, 0.0, 4.0]
    """
    y = E5M2.decode(q.codes)
    size = jnp.exp2((jnp.log2(jnp.where(y == 0, jnp.float32(1), jnp.abs(y))) - q.shift) / q.squeeze)
    return jnp.sign(y) * jnp.where(y == 0, jnp.float32(0), jnp.minimum(size, np.finfo(np.float32).max))
