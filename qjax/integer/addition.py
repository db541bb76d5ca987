"""Products of floats by one addition of their bits (L-Mul, Luo and Sun 2024, arXiv:2410.00907; catalogue A32)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

_MAGNITUDE, _BIAS = 0x7FFFFFFF, 127 << 23


def _offset_exponent(mantissa: int) -> int:
    """l(m) of the paper: the mantissas' product x_m y_m is replaced by 2^-l(m).

    >>> [_offset_exponent(m) for m in (2, 3, 4, 5, 23)]
    [2, 3, 3, 4, 4]
    """
    return mantissa if mantissa <= 3 else 3 if mantissa == 4 else 4


def additive_product(x: Array, y: Array, mantissa: int) -> Array:
    """x*y elementwise (float32 of one shape), as (1 + x_m + y_m + 2^-l(m)) 2^(x_e + y_e): their bits added.

    mantissa : bits m (1..23) to which both mantissas are rounded first, ties to even.

    What the sum of mantissas carries goes into the exponent, as an integer adder does it: from s = x_m + y_m + 2^-l of
    1 on the result is 2s 2^(x_e + y_e). Zeros and subnormal numbers give zero; results beyond the normal numbers are
    zero or infinite; infinities and NaN multiply as usual.

    >>> additive_product(jnp.array([1.5, 1.0]), jnp.array([-1.5, 2.0]), 3).tolist()
    [-2.25, 2.25]

    Raises:
        TypeError: x or y is not float32.
        ValueError: mantissa is none of 1..23, or the shapes differ.
    """
    if x.dtype != jnp.float32 or y.dtype != jnp.float32:
        raise TypeError(f"additive_product: expected float32, got {x.dtype} and {y.dtype}")
    if not 1 <= mantissa <= 23 or x.shape != y.shape:
        raise ValueError(f"additive_product: mantissa {mantissa} (1..23), shapes {x.shape} and {y.shape} (equal)")
    exact = x * y
    sign = lax.bitcast_convert_type(exact, jnp.int32) & ~_MAGNITUDE
    a, b = (_rounded(v, mantissa) for v in (x, y))
    shift = 1 << (23 - _offset_exponent(mantissa))
    # Without overflow: |a - bias| and b stay below 2^31 together but for results beyond the largest exponent.
    high = (a >> 1) + (b >> 1) - (_BIAS >> 1) + (shift >> 1)
    total = a - _BIAS + b + shift
    usual = jnp.where(high < (1 << 22), 0, jnp.where(high >= (255 << 22), 255 << 23, total))
    plain = jnp.isfinite(x) & jnp.isfinite(y)
    zero = (a < (1 << 23)) | (b < (1 << 23))
    result = lax.bitcast_convert_type(sign | jnp.where(zero, 0, usual), jnp.float32)
    return jnp.where(plain, result, exact)


def additive_matmul(x: Array, w: Array, mantissa: int) -> Array:
    """x [M, K] times w [K, N] (float32) with each product by `additive_product`, summed in float32.

    Raises as `additive_product` does.
    """

    def add(total: Array, pair: tuple[Array, Array]) -> tuple[Array, None]:
        column, row = (jnp.broadcast_to(part, total.shape) for part in (pair[0][:, None], pair[1][None, :]))
        return total + additive_product(column, row, mantissa), None

    return jax.lax.scan(add, jnp.zeros((x.shape[0], w.shape[1]), jnp.float32), (x.T, w))[0]


def _rounded(x: Array, mantissa: int) -> Array:
    """The bits of |x| with the mantissa rounded to so many bits, ties to even; those that are cut off are zero."""
    bits = lax.bitcast_convert_type(x, jnp.int32) & _MAGNITUDE
    cut = 23 - mantissa
    if cut == 0:
        return bits
    odd = (bits >> cut) & 1
    return ((bits + (1 << (cut - 1)) - 1 + odd) >> cut) << cut
