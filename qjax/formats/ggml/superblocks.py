"""K-quants: super-blocks of 256 numbers whose sub-blocks have quantized scales, and minima (catalogue C8, U2).

Functions take the numbers of a super-block along the leading axis, float32 [256, super-blocks...], with their
importance or None, and give its parts as `rounding` does. Three steps: every sub-block looks for its scale; those are
quantized under one float16; the codes are rounded once more under what was stored, but where that is zero. Own code
after quantize_row_q*_K_ref (without importance) and quantize_row_q*_K_impl (with it) of ggml-quants.c.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from qjax.formats.ggml import search
from qjax.formats.ggml.rounding import Chosen, half
from qjax.formats.ggml.search import cut, joined, largest, sums
from qjax.formats.rules import quotient, rounded


def affine(
    x: Array, importance: Array | None, size: int, top: int, limit: int, plain: tuple[float, float, int]
) -> Chosen:
    """Q2_K, Q4_K and Q5_K: codes 0..top in sub-blocks of `size` under scales and minima 0..limit.

    `plain` are start, step and count of the search without importance, which for Q2_K takes absolute errors.
    """
    absolute = top == 3
    inside = cut(x, size)
    if importance is None:
        weight = jnp.abs(inside)
        if not absolute:
            weight = jnp.sqrt(sums(lambda x: (x * x,), inside)[0] / size)[None] + weight
        scale, low, codes = search.affine(inside, weight, top, *plain, absolute=absolute)
        (d, scales), (dmin, minima) = (_under_largest(part, limit) for part in (scale, -low))
    else:
        energy = sums(lambda x: (x * x,), x)[0] * (1 if absolute else 2) / x.shape[0]
        weight = weighted(inside, cut(importance, size), energy[None])
        scale, low, codes = search.affine(inside, weight, top, -0.9, 0.05, 36)
        total = _total(weight, inside)
        (d, scales), (dmin, minima) = (search.positive(part, total, limit) for part in (scale, -low))
    d, dmin = half(d), half(dmin)
    codes = _again(inside, codes, _times(d, scales), _times(dmin, minima), 0, top)
    return {"scale": d[None], "minimum": dmin[None], "scales": scales, "minima": minima, "codes": codes}


def q3_k(x: Array, importance: Array | None) -> Chosen:
    """Q3_K: codes -4..3 in sub-blocks of 16 under signed scales of six bits."""
    inside = cut(x, 16)
    if importance is None:
        scale, codes = search.descent(inside, 4)
        d, scales = _under_largest_signed(scale, 32, 31)
        scales = jnp.where((d == 0)[None], jnp.float32(-32), scales)
    else:
        energy = 2 * sums(lambda x: (x * x,), x)[0] / x.shape[0]
        weight = weighted(inside, cut(importance, 16), energy[None])
        scale, codes = search.symmetric(inside, weight, 4)
        d, scales = search.symmetric(scale, _total(weight, inside), 32)
    d = half(d)
    return {"scale": d[None], "scales": scales, "codes": _again(inside, codes, _times(d, scales), None, -4, 3)}


def q6_k(x: Array, importance: Array | None) -> Chosen:
    """Q6_K: codes -32..31 in sub-blocks of 16 under signed scales of eight bits."""
    inside = cut(x, 16)
    scale, codes = search.symmetric(inside, inside * inside if importance is None else cut(importance, 16), 32)
    empty = jnp.max(jnp.abs(scale), axis=0) < search.EPSILON
    d, scales = _under_largest_signed(jnp.where(empty[None], jnp.float32(0), scale), 128, 127)
    d = half(d)
    codes = _again(inside, codes, _times(d, scales), None, -32, 31)
    return {"scale": d[None], "scales": scales, "codes": jnp.where(empty[None], jnp.float32(-32), codes)}


def weighted(x: Array, importance: Array, energy: Array) -> Array:
    """importance * sqrt(energy + x^2), the weight of an error at x [n, ...]; `energy` [...] is shared along n."""
    return importance * jnp.sqrt(energy[None] + rounded(x * x))


def _total(weight: Array, x: Array) -> Array:
    """The weight of each sub-block."""
    return sums(lambda w: (w,), jnp.broadcast_to(weight, x.shape))[0]


def _under_largest(values: Array, limit: int) -> tuple[Array, Array]:
    """A unit and codes 0..limit of values >= 0 [sub-blocks, ...]: the largest becomes `limit`."""
    peak = jnp.max(values, axis=0)
    peak = jnp.where(peak > 0, peak, jnp.float32(0))  # no minus zero
    inverse = jnp.where(peak > 0, jnp.float32(limit) / peak, jnp.float32(0))
    return quotient(peak, limit), jnp.minimum(jnp.round(inverse[None] * values), jnp.float32(limit))


def _under_largest_signed(values: Array, lowest: int, top: int) -> tuple[Array, Array]:
    """A unit and codes -lowest..top of values [sub-blocks, ...]: the largest in size becomes -lowest."""
    inverse = jnp.float32(-lowest) / largest(values)
    codes = jnp.clip(jnp.round(inverse[None] * values), jnp.float32(-lowest), jnp.float32(top))
    empty = jnp.isinf(inverse)
    return jnp.where(empty, jnp.float32(0), jnp.float32(1) / rounded(inverse)), jnp.where(
        empty[None], jnp.float32(0), codes
    )


def _times(unit: Array, codes: Array) -> Array:
    """What the stored scales or minima stand for, exactly."""
    return unit.astype(jnp.float32)[None] * codes


def _again(x: Array, codes: Array, scale: Array, minimum: Array | None, low: int, high: int) -> Array:
    """Codes of x [size, sub-blocks, ...] under stored scales, [256, ...]; where the scale is zero they stay."""
    y = quotient(x if minimum is None else x + minimum[None], scale[None])
    new = jnp.clip(jnp.round(y), jnp.float32(low), jnp.float32(high))
    return joined(jnp.where(scale[None] == 0, codes, new))
