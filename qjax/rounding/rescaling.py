"""Dyadic rescaling: a real multiplier as b/2^c, applied to integers by integer arithmetic alone (catalogue R1).

An int8 product accumulates q_x q_w in int32 and is worth s_x s_w times that; the next layer wants codes in units of
s_y. So sums are multiplied by M = s_x s_w / s_y, which b/2^c stands for (Jacob et al. 2018, section 2.2; I-BERT).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.core import Tracer

Mode = Literal["half_up", "half_away", "half_even", "floor"]


class Dyadic(NamedTuple):
    """The number b / 2^c, elementwise: b int32 (nonnegative), c int32 in 0..62."""

    b: Array
    c: Array


def dyadic(multiplier: Array, bits: int = 31) -> Dyadic:
    """The b/2^c nearest to a nonnegative float32 `multiplier` (any shape), b of at most `bits` bits, ties to even.

    Nonzero multipliers get b in [2^(bits-1), 2^bits), an error of at most 2^-bits of their size, and no error with
    `bits` of 24 and more; those below 2^(bits-63) lose bits, as c stops at 62.

    Raises ValueError for bits outside 2..31 and, on concrete arrays, for a multiplier that is negative, not finite, or
    2^bits and more; under a trace such a one is clipped, NaN to 0.

    >>> m = dyadic(jnp.array([0.75, 3.0]), bits=8)
    >>> m.b.tolist(), m.c.tolist()
    ([192, 192], [8, 6])
    """
    if not 2 <= bits <= 31:
        raise ValueError(f"dyadic: bits must be 2..31, got {bits}")
    m = jnp.asarray(multiplier, jnp.float32)
    if not isinstance(m, Tracer):
        wrong = ~((np.asarray(m) >= 0) & (np.asarray(m) < 2.0**bits))
        if wrong.any():
            raise ValueError(f"dyadic: multiplier {np.asarray(m)[wrong][0]} is not a number in [0, 2^{bits})")
    top = float(np.nextafter(np.float32(2.0**bits), np.float32(0)))
    m = jnp.clip(jnp.where(jnp.isnan(m), jnp.float32(0), m), jnp.float32(0), jnp.float32(top))
    fraction, exponent = jnp.frexp(m)  # m = fraction * 2^exponent, fraction in [1/2, 1)
    c = jnp.clip(bits - exponent, 0, 62)
    b = jnp.round(jnp.ldexp(fraction, exponent + c))
    carried = (b == 2.0**bits) & (c > 0)  # rounded up to the next power of two
    b = jnp.minimum(jnp.where(carried, b / 2, b), jnp.float32(top))
    return Dyadic(b.astype(jnp.int32), c - carried.astype(jnp.int32))


def rescale(acc: Array, multiplier: Dyadic, mode: Mode = "half_up") -> Array:
    """round(acc * b / 2^c) as int32, exactly: 64-bit products from 32-bit integers, saturating at the ends of int32.

    acc  : int32, any shape; `b` and `c` broadcast against it (per channel: the last axis).
    mode : a half goes "half_up" (add 2^(c-1) and shift, the hardware's way), "half_away" from zero (gemmlowp) or to
           "half_even"; or everything goes to the "floor" (a bare shift).

    >>> rescale(jnp.array([10, -10, 14]), dyadic(jnp.array([0.25])), "half_up").tolist()
    [3, -2, 4]
    """
    if acc.dtype != jnp.int32:
        raise TypeError(f"rescale: accumulators are int32, got {acc.dtype}")
    if mode not in ("half_up", "half_away", "half_even", "floor"):
        raise ValueError(f"rescale: mode {mode!r} is none of half_up, half_away, half_even, floor")
    shape = jnp.broadcast_shapes(acc.shape, multiplier.b.shape)
    acc, b, c = (jnp.broadcast_to(part, shape) for part in (acc, *multiplier))
    negative = acc < 0
    # |acc| as unsigned holds 2^31 too; the magnitude's floor and remainder then give every mode.
    size = jnp.where(negative, -acc, acc).astype(jnp.uint32)
    high, low = _product(size, b.astype(jnp.uint32))
    whole_high, whole = _shifted(high, low, c.astype(jnp.uint32))
    rest_high, rest = _below(high, low, c.astype(jnp.uint32))
    half_high, half = _power(c.astype(jnp.uint32) - 1)
    exact = (rest_high == 0) & (rest == 0)
    tie = (rest_high == half_high) & (rest == half) & (c > 0)
    more = ((rest_high > half_high) | ((rest_high == half_high) & (rest > half))) & (c > 0)
    up = {
        "half_up": more | (tie & ~negative),
        "half_away": more | tie,
        "half_even": more | (tie & ((whole & 1) == 1)),
        "floor": negative & ~exact,
    }[mode]
    # A magnitude that does not fit is set to 2^31 first, so that the increment cannot wrap around.
    limit = jnp.uint32(2**31)
    whole = jnp.where((whole_high > 0) | (whole > limit), limit, whole)
    whole = whole + (up & (whole < limit)).astype(jnp.uint32)
    value = jnp.minimum(whole, limit - (~negative).astype(jnp.uint32)).astype(jnp.int32)
    return jnp.where(negative, -value, value)


def _product(x: Array, y: Array) -> tuple[Array, Array]:
    """The 64-bit product of two uint32 as (high, low), from four products of 16-bit halves."""
    mask = jnp.uint32(0xFFFF)
    x1, x0, y1, y0 = x >> 16, x & mask, y >> 16, y & mask
    middle = x1 * y0 + ((x0 * y0) >> 16)
    other = x0 * y1 + (middle & mask)
    return x1 * y1 + (middle >> 16) + (other >> 16), x * y


def _shifted(high: Array, low: Array, c: Array) -> tuple[Array, Array]:
    """(high, low) >> c, c in 0..63."""
    near = jnp.where(c == 0, low, (low >> c) | (high << (32 - c)))
    return jnp.where(c < 32, high >> c, jnp.uint32(0)), jnp.where(c < 32, near, high >> (c - 32))


def _below(high: Array, low: Array, c: Array) -> tuple[Array, Array]:
    """The last c bits of (high, low), c in 0..63."""
    ones = jnp.uint32(0xFFFFFFFF)
    mask_high = jnp.where(c > 32, (jnp.uint32(1) << (c - 32)) - 1, jnp.uint32(0))
    mask = jnp.where(c < 32, (jnp.uint32(1) << c) - 1, ones)
    return high & mask_high, low & mask


def _power(c: Array) -> tuple[Array, Array]:
    """2^c as (high, low), c in 0..63; nothing where c lies outside."""
    return (
        jnp.where((c >= 32) & (c < 64), jnp.uint32(1) << (c - 32), jnp.uint32(0)),
        jnp.where(c < 32, jnp.uint32(1) << c, jnp.uint32(0)),
    )
