"""Scale rules: from a block's range to its scale, in float32; and storing a scale in a narrow dtype."""

from __future__ import annotations

import functools

import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import Array, lax

from qjax.formats.elements import E4M3, E5M2, E8M0, Element
from qjax.formats.format import Choice, Format
from qjax.formats.minifloat import Float

F32_MAX = float(np.finfo(np.float32).max)
F32_TINY = float(np.finfo(np.float32).tiny)
NARROW: dict[str, Float] = {"float8_e8m0fnu": E8M0, "float8_e4m3fn": E4M3, "float8_e5m2": E5M2}
FACTOR: dict[str, float] = {"fpquant": 4 / 3}
"""Rules whose scales have a constant second factor, stored once."""


def scale_of(fmt: Format, low: Array, high: Array, empty: float = 1.0) -> Array:
    """The unrounded scale (float32) of blocks whose values lie in [low, high] (float32, finite or NaN).

    A block of zeros gets `empty`, or the smallest scale where the element has no zero. NaN stays NaN. Infinities must
    have been clipped with `clip_range`. Of a choice, the largest scale that any candidate asks for. A constant factor
    of the rule is left out.
    """
    if isinstance(fmt.rule, Choice):
        return functools.reduce(jnp.maximum, [scale_of(c, low, high, empty) for c in fmt.candidates])
    e = fmt.element
    absmax = jnp.maximum(-low, high)
    reach = e.max if fmt.reach is None else fmt.reach
    if fmt.rule == "absmax":
        scale = quotient(absmax, reach)
    elif fmt.rule == "half":
        scale = quotient(absmax, (2**e.bits - 1) / 2)
    elif fmt.rule == "signed":
        scale = quotient(jnp.where(high >= -low, high, low), e.min)
    elif fmt.rule == "minmax":
        scale = quotient(high - low, e.max - e.min)
        # Equal values leave no width: with a minimum any scale serves, the minimum is the value.
        return jnp.where(high == low, jnp.float32(1), scale)
    else:
        scale = _power_of_two(fmt.rule, e, reach, absmax)
    return jnp.where(absmax == 0, jnp.float32(empty if 0 in e.levels() else F32_TINY), scale)


def cross(fmt: Format, row: Array, column: Array) -> tuple[Array, Array]:
    """CrossQuant's two unrounded factors row^alpha and column^(1-alpha)/reach (arXiv:2410.07505), float32.

    `row` and `column` are largest magnitudes, finite or NaN. Both are raised to what gives the least normal float32 as
    a product: smaller ones, zeros among them, could not be told from each other anyway.
    """
    assert fmt.alpha is not None
    reach = fmt.element.max if fmt.reach is None else fmt.reach
    least = jnp.float32(F32_TINY * reach * (1 + 2.0**-7))  # a margin for the rounding of both factors
    row, column = jnp.maximum(row, least), jnp.maximum(column, least)
    return row ** jnp.float32(fmt.alpha), quotient(column ** jnp.float32(1 - fmt.alpha), reach)


def quotient(x: Array, divisor: Array | float) -> Array:
    """`x / divisor` rounded once, as IEEE division is; float32, the divisor broadcast against `x`.

    XLA turns a division by something broadcast into a multiplication by its rounded reciprocal, and a third of the
    quotients are an ulp off: an exact tie, such as absmax/7.5 makes of every block's largest value, then goes the
    wrong way. Selecting NaN for NaN changes no result and makes the divisor depend on `x`, so that it is no broadcast,
    under vmap neither (a barrier would be batched before it is broadcast).

    Read the result by one instruction only, as every `encode` does by clipping or rounding first: XLA fuses no division
    that two instructions read, and then keeps all quotients in memory.
    """
    divisor = jnp.asarray(divisor, jnp.float32)
    shape = jnp.broadcast_shapes(x.shape, divisor.shape)
    x = jnp.broadcast_to(x, shape)
    return x / jnp.where(jnp.isnan(x), x, jnp.broadcast_to(divisor, shape))


def rounded(x: Array) -> Array:
    """`x` as it is, rounded to float32 before it is used.

    XLA:CPU contracts a product and the sum it enters into one operation with one rounding, and XLA makes c*b/a of
    c/(a/b). Where results must equal those of code that rounds at every step, selecting NaN for NaN stands between (a
    barrier or a bitcast does not).
    """
    return jnp.where(jnp.isnan(x), jnp.float32(jnp.nan), x)


def _power_of_two(rule: str, e: Element, reach: float, absmax: Array) -> Array:
    """2^k as float32 from the bits of absmax (OCP MX v1.0 section 6.3 and its variants); k in -126..127."""
    one, mask = jnp.int32(1), jnp.int32(0x7FFFFF)
    if rule == "rceil":
        absmax = quotient(absmax, reach)
    pattern = lax.bitcast_convert_type(absmax, jnp.int32)
    if rule == "even":
        mantissa = e.mantissa if isinstance(e, Float) else e.bits - 2
        pattern = pattern + (one << (22 - mantissa))
    power = pattern >> 23
    if rule in ("rceil", "ceil"):
        power = power + ((pattern & mask) != 0).astype(jnp.int32)
    if rule != "rceil":
        power = power - e.top_exponent
    # Exponent -127 would be a float32 subnormal, which XLA flushes: the smallest scale is 2^-126.
    scale = lax.bitcast_convert_type(jnp.clip(power, 1, 254) << 23, jnp.float32)
    return jnp.where(jnp.isnan(absmax), jnp.float32(jnp.nan), scale)


def clip_range(fmt: Format, low: Array, high: Array, positive: bool = False) -> tuple[Array, Array]:
    """Clips a range to what decodes to finite float32 values; NaN stays; with a zero point 0 is included.

    `positive` says that low > 0, so that high - low cannot overflow.
    """
    top = F32_MAX
    if fmt.offset in ("minimum", "float_zero"):
        top = F32_MAX * (1 - 2.0**-12 if positive else 0.5)
    elif fmt.offset == "zero_point":  # high - low, and half a step that rounding the zero point may add
        span = fmt.element.max
        top = F32_MAX / 2 * span / (span + 1)
    low, high = jnp.clip(low, jnp.float32(-top), jnp.float32(top)), jnp.clip(high, jnp.float32(-top), jnp.float32(top))
    if fmt.offset == "zero_point":
        low, high = jnp.minimum(low, jnp.float32(0)), jnp.maximum(high, jnp.float32(0))
    return low, high


@functools.cache
def limits(dtype: str, reach: float) -> tuple[float, float]:
    """Smallest and largest scale of storage `dtype` such that scale times `reach` stays finite in float32."""
    if dtype in NARROW:
        levels = NARROW[dtype].levels()
        levels = levels[levels >= F32_TINY]
        return float(levels[0]), float(levels[levels <= F32_MAX / max(reach, 1.0)][-1])
    storage = np.dtype(getattr(ml_dtypes, dtype, dtype))
    info = ml_dtypes.finfo(storage)
    bound = min(float(info.max), F32_MAX / max(reach, 1.0))
    top = np.asarray(bound, storage)
    if float(top) > bound:
        top = np.nextafter(top, np.asarray(0, storage))
    return max(float(info.smallest_subnormal), F32_TINY), float(top)


def within(scale: Array, dtype: str, fmt: Format) -> Array:
    """A scale of `fmt` moved to what storage `dtype` holds and keeps every value finite; sign and NaN kept.

    Of a choice, to what serves any candidate: each has moved its own before.
    """

    def reach(c: Format) -> float:
        largest = max(abs(c.element.min), abs(c.element.max)) if c.offset is None else 1.0
        return largest * FACTOR.get(str(c.rule), 1.0)

    low, high = limits(dtype, min(map(reach, fmt.candidates)))
    size = jnp.clip(jnp.abs(scale), jnp.float32(low), jnp.float32(high))
    return jnp.where(scale < 0, -size, size)


def store(scale: Array, dtype: str, fmt: Format) -> Array:
    """A scale of `fmt` rounded to storage `dtype`: nearest even, never zero, never infinite; sign and NaN kept."""
    scale = within(scale, dtype, fmt)
    if dtype in NARROW:
        return lax.bitcast_convert_type(NARROW[dtype].encode(scale), jnp.dtype(dtype))
    if dtype == "float32" and fmt.offset == "minimum":
        # Sixteen significant bits make code*scale exact, so that a fused multiply-add changes no bit of scale*q + m.
        pattern = lax.bitcast_convert_type(scale, jnp.int32)
        return lax.bitcast_convert_type((pattern + 0x80) & ~0xFF, jnp.float32)
    return scale.astype(dtype)


def load(scale: Array) -> Array:
    """A stored scale or offset as float32, exactly."""
    return scale.astype(jnp.float32)
