"""Blocks of ggml that round to the range of their numbers: the types of 32 without importance, ternary and FP4.

Functions take the elements of a block along the leading axis, float32 [n, blocks...], and give its parts with their
values along it: codes, and scales that are codes themselves, as the element numbers them; scale and minimum as float32.
Written after the reference quantizers of ggml-quants.c (catalogue U1).
"""

from __future__ import annotations

import functools

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from qjax.formats.ggml.search import cut, extremes, joined, largest
from qjax.formats.ggml.types import Part
from qjax.formats.rules import quotient, rounded

HALF_MAX = 65504.0
"""The largest float16."""

Chosen = dict[Part, Array]


def signed(x: Array, top: int) -> Chosen:
    """Q4_0 and Q5_0: the largest number becomes code -top, whatever its sign; halves go up.

    The codes are rounded under the scale before that is stored as float16.
    """
    scale = largest(x) / jnp.float32(-top)
    codes = jnp.floor(rounded(x * inverse(scale)[None]) + jnp.float32(top + 0.5))
    return {"scale": scale[None], "codes": jnp.clip(codes, 0, 2 * top - 1) - top}


def spread(x: Array, top: int) -> Chosen:
    """Q4_1 and Q5_1: the range in `top` steps from its lower end; halves go up. Codes precede the storage here too."""
    low, high = extremes(x)
    scale = quotient(high - low, top)
    codes = jnp.floor(rounded((x - low[None]) * inverse(scale)[None]) + jnp.float32(0.5))
    return {"scale": scale[None], "minimum": low[None], "codes": jnp.clip(codes, 0, top)}


def symmetric(x: Array, top: int) -> Chosen:
    """Q8_0 (top 127) and the ternary types (top 1): the largest size becomes `top`; halves go away from zero."""
    scale = quotient(jnp.max(jnp.abs(x), axis=0), top)
    y = x * inverse(scale)[None]
    size = jnp.floor(jnp.abs(y))
    size = size + (jnp.abs(y) - size >= 0.5).astype(jnp.float32)
    return {"scale": scale[None], "codes": jnp.where(y < 0, -size, size)}


def mxfp4(x: Array) -> Chosen:
    """MXFP4: exponent floor(log2(peak)) - 2 as OCP's, but a number halfway between two goes to the smaller size.

    The logarithm is a float32, which just below a power of two is already that power's.
    """
    peak = jnp.max(jnp.abs(x), axis=0)
    exponent = jnp.where(peak > 0, jnp.clip(_floor_log2(peak) + 125, 0, 254), 0)
    # By 2^(128 - exponent), twice its half: either half is a normal float32, the whole need not be.
    half = (128 - exponent) >> 1
    y = x * _power(half)[None] * _power(128 - exponent - half)[None]
    return {"scale": exponent[None], "codes": _fp4(y, jnp.ones_like(peak))}


def nvfp4(x: Array) -> Chosen:
    """NVFP4 without a tensor scale: UE4M3 of peak/6 for 16, halves up, and 448 from 256 on; ties as in MXFP4."""
    x = cut(x, 16)
    peak = jnp.minimum(quotient(jnp.max(jnp.abs(x), axis=0), 6), jnp.float32(448))
    pattern = lax.bitcast_convert_type(peak, jnp.int32)
    power = (pattern >> 23) - 127 + 7
    normal = (power << 3 | (pattern >> 20) & 7) + ((pattern >> 19) & 1)
    small = jnp.minimum(jnp.floor(peak * 512 + jnp.float32(0.5)), 7).astype(jnp.int32)
    code = jnp.where(power <= 0, small, jnp.where(normal >> 3 >= 15, 0x7E, normal))
    fraction = jnp.where(code < 8, code, 8 + (code & 7)).astype(jnp.float32)
    unit = fraction * _power(jnp.maximum(code >> 3, 1) - 11)
    return {"scales": code, "codes": joined(_fp4(x, unit))}


def half(x: Array) -> Array:
    """`x` as float16, nearest even; beyond it the largest."""
    return jnp.clip(x, jnp.float32(-HALF_MAX), jnp.float32(HALF_MAX)).astype(jnp.float16)


def inverse(scale: Array) -> Array:
    """1 / scale, or zero for a scale of zero."""
    return jnp.where(scale != 0, jnp.float32(1) / rounded(scale), jnp.float32(0))


def _power(exponent: Array) -> Array:
    """2^exponent as float32, for exponents -126..127."""
    return lax.bitcast_convert_type((exponent + 127) << 23, jnp.float32)


def _fp4(x: Array, unit: Array) -> Array:
    """E2M1 codes of x in units of half the scale: the nearest, of two equally near the smaller; no minus zero."""
    middles = (0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0)
    code = sum((jnp.abs(x) > (unit * middle)[None]).astype(jnp.int32) for middle in middles)
    code = jnp.where(unit[None] > 0, code, 0)
    return jnp.where((x < 0) & (code > 0), code + 8, code)


def _floor_log2(x: Array) -> Array:
    """floor(log2f(x)) for positive normal x."""
    pattern = lax.bitcast_convert_type(x, jnp.int32)
    exponent = pattern >> 23
    return exponent - 127 + ((pattern & 0x7FFFFF) >= jnp.take(jnp.asarray(_rounding_up()), exponent)).astype(jnp.int32)


@functools.cache
def _rounding_up() -> np.ndarray:
    """For each exponent field the mantissa field from which the float32 logarithm is that of the next power of two."""
    exponent = np.arange(256)[:, None]
    mantissa = 2**23 - np.arange(256)[None, :]
    x = np.ldexp(1.0 + mantissa / 2.0**23, exponent - 127)
    up = np.log2(x).astype(np.float32) >= exponent - 126
    return (2**23 - np.sum(up, axis=1) + 1).astype(np.int32)
