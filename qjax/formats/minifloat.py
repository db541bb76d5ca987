"""Minifloats: any ExMy of at most sixteen bits, with the standards' special values (catalogue A9-A13)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

Specials = Literal["none", "nan", "ieee", "fnuz"]

ALIASES = {"e5m10": "fp16", "e8m7": "bf16"}


def usual(base: str) -> tuple[Specials, bool, bool]:
    """Special values, sign and zero that "e4m3" and the like have where their name says no more."""
    specials: Specials = {"e4m3": "nan", "e5m3": "nan", "e8m0": "nan"}.get(base, "none")  # type: ignore[assignment]
    if base in ("e5m2", "e5m10", "e8m7"):
        specials = "ieee"
    return specials, base != "e8m0", base != "e8m0"


@dataclass(frozen=True)
class Float:
    """Sign, `exponent` and `mantissa` bits; a code is the bit pattern in a uint8 or, above 8 bits, a uint16.

    `specials`: "none" (every code is finite), "nan" (only all ones, as in OCP E4M3 and E8M0), "ieee" (the top exponent
    holds inf and NaN, as in OCP E5M2, IEEE binary16 and bfloat16) or "fnuz" (NaN is the code of -0, which does not
    exist, as in the FP8 types of AMD and Graphcore). `bias=None` is 2^(exponent-1)-1, one more for "fnuz".

    `subnormals=False` is flush to zero: codes of the lowest exponent are all zero. `zero=False` makes the lowest
    exponent an ordinary binade, so that there is neither zero nor subnormal (E8M0).

    >>> Float(2, 1, specials="none").levels().tolist()
    [-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    """

    exponent: int
    mantissa: int
    bias: int | None = None
    specials: Specials = "none"
    subnormals: bool = True
    signed: bool = True
    zero: bool = True

    def __post_init__(self) -> None:
        if self.bias is None:
            object.__setattr__(self, "bias", self._usual_bias)
        if not self.zero or self.mantissa == 0:  # there are none: one spelling for one element
            object.__setattr__(self, "subnormals", self.zero)
        if self.exponent < 1 or self.mantissa < 0 or not 1 <= self.bits <= 16:
            raise ValueError(f"a minifloat has exponent >= 1, mantissa >= 0 and at most 16 bits, got {self}")
        if self.specials == "ieee" and self.mantissa == 0:
            raise ValueError(f"IEEE specials need a mantissa bit to tell NaN from infinity, got {self}")
        if self.specials == "fnuz" and not (self.signed and self.zero):
            raise ValueError(f"special values 'fnuz' take the place of -0, got {self}")
        if self._top_code < (2**self.mantissa if self.zero and not self.subnormals else 0):
            raise ValueError(f"no finite code is left beside the special values of {self}")
        lowest = 1 - self._bias if self.zero else -self._bias
        # Every value is a normal float32 (XLA flushes subnormals to zero in arithmetic) or, with float32's own bias, is
        # known by its bit pattern: the subnormals of bfloat16, 2^-127 as the smallest E8M0 scale.
        smallest = -126 + (self.mantissa if self.subnormals else 0)
        if self._bias == 127 and (self.zero or self.mantissa == 0):
            smallest = lowest
        if lowest < smallest or self.top_exponent > 127:
            raise ValueError(f"exponents {lowest}..{self.top_exponent} of {self} do not fit float32 arithmetic")

    @property
    def _usual_bias(self) -> int:
        return 2 ** (self.exponent - 1) - (self.specials != "fnuz")

    @property
    def _bias(self) -> int:
        assert self.bias is not None
        return self.bias

    @property
    def _top_code(self) -> int:
        """Largest finite code, sign bit clear."""
        last = 2 ** (self.exponent + self.mantissa) - 1
        return {"none": last, "nan": last - 1, "ieee": last - 2**self.mantissa, "fnuz": last}[self.specials]

    @property
    def bits(self) -> int:
        return self.exponent + self.mantissa + self.signed

    @property
    def name(self) -> str:
        base = f"e{self.exponent}m{self.mantissa}"
        specials, signed, zero = usual(base)
        name = (
            ("" if self.signed == signed else "s" if self.signed else "u")
            + base
            + ("" if self._bias == self._usual_bias else f"b{self._bias}")
            + ("" if self.specials == specials else f"_{self.specials}")
            + ("" if self.zero == zero else "_zero" if self.zero else "_nozero")
            + ("" if self.subnormals or not self.zero else "_flush")
        )
        return ALIASES.get(name, name)

    @property
    def code_dtype(self) -> str:
        return "uint8" if self.bits <= 8 else "uint16"

    @property
    def max(self) -> float:
        return float(self._magnitude(np.array([self._top_code]))[0])

    @property
    def min(self) -> float:
        """Most negative finite value; the smallest value of an unsigned element."""
        return -self.max if self.signed else float(self._magnitude(np.array([0]))[0])

    @property
    def top_exponent(self) -> int:
        """floor(log2(max)): the emax of the MX specification."""
        return (self._top_code >> self.mantissa) - self._bias

    def _magnitude(self, code: np.ndarray) -> np.ndarray:
        fraction, power = code & (2**self.mantissa - 1), code >> self.mantissa
        normal = np.ldexp(2.0**self.mantissa + fraction, power - self._bias - self.mantissa)
        if self.zero:
            subnormal = np.ldexp(1.0 * fraction, 1 - self._bias - self.mantissa) if self.subnormals else 0.0
            normal = np.where(power == 0, subnormal, normal)
        return normal

    def values(self) -> np.ndarray:
        """Value of every code as float32, NaN and infinities included."""
        code = np.arange(2**self.bits)
        low = code & (2 ** (self.exponent + self.mantissa) - 1)
        value = self._magnitude(np.minimum(low, self._top_code))
        value[low > self._top_code] = np.nan
        if self.specials == "ieee":
            value[low == self._top_code + 1] = np.inf
        value = np.where(low == code, value, -value)
        if self.specials == "fnuz":
            value[self._nan_code] = np.nan
        return value.astype(np.float32)

    @property
    def _nan_code(self) -> int:
        """The code a NaN gets; 0 where the element has none."""
        return {"none": 0, "fnuz": 2 ** (self.bits - 1)}.get(self.specials, 2 ** (self.bits - self.signed) - 1)

    def levels(self) -> np.ndarray:
        """The finite representable values, ascending and unique (one zero)."""
        values = self.values()
        return np.unique(values[np.isfinite(values)] + np.float32(0))

    def encode(self, x: Array, table: Array | None = None) -> Array:
        """Codes nearest to `x` (float32, any shape): ties to even, saturating at the largest finite value.

        Infinities saturate too. NaN becomes the element's NaN (sign dropped), or zero where it has none. The sign of
        a zero is kept by signed elements that have -0; unsigned ones send negatives to their smallest value. Without
        subnormals a tie between zero and the smallest normal goes to zero.
        """
        bits = lax.bitcast_convert_type(x, jnp.int32)
        magnitude = bits & jnp.int32(0x7FFFFFFF)
        # As integers, positive floats are in their order, infinity included.
        positive = magnitude if self.signed else jnp.where(bits < 0, jnp.int32(0), bits)
        code = self._encode_pattern(jnp.minimum(positive, _pattern(self.max)))
        if self.signed:
            sign = (bits < 0).astype(jnp.int32) << (self.bits - 1)
            code = code | (jnp.where(code == 0, jnp.int32(0), sign) if self.specials == "fnuz" else sign)
        return jnp.where(magnitude > 0x7F800000, jnp.int32(self._nan_code), code).astype(self.code_dtype)

    def _encode_pattern(self, pattern: Array) -> Array:
        """Codes of non-negative numbers up to the largest, given by their float32 bits."""
        # Half to even on the bits: a carry into the next binade comes out right by itself. Without mantissa bits the
        # significand to be kept is the odd 1, so that every tie goes up, as in ml_dtypes.
        cut = 23 - self.mantissa
        odd = (pattern >> cut) & 1 if self.mantissa else 1
        code = ((pattern + ((1 << (cut - 1)) - 1) + odd) >> cut) - ((127 - self._bias) << self.mantissa)
        if not self.zero:
            if self._bias == 127:  # 2^-127 is a float32 subnormal: its midpoint to 2^-126 is at 0x600000
                code = jnp.where(pattern < (1 << 23), (pattern >= 0x600000).astype(jnp.int32), code)
            return jnp.maximum(code, 0)
        smallest = 2.0 ** (1 - self._bias)
        if not self.mantissa or not self.subnormals:
            below = (pattern > _pattern(smallest / 2)).astype(jnp.int32) << self.mantissa
        elif self._bias == 127:
            return code  # float32's own subnormals are cut like a binade
        else:
            steps = lax.bitcast_convert_type(pattern, jnp.float32) * jnp.float32(2.0**self.mantissa / smallest)
            below = jnp.round(steps).astype(jnp.int32)
        return jnp.where(pattern < _pattern(smallest), below, code)

    def decode(self, codes: Array, table: Array | None = None) -> Array:
        """Values of `codes` (bit patterns) as float32, special values included."""
        code = codes.astype(jnp.int32)
        low = code & (2 ** (self.exponent + self.mantissa) - 1)
        pattern = (low << (23 - self.mantissa)) + ((127 - self._bias) << 23)
        if not self.zero and self._bias == 127:
            pattern = jnp.where(low == 0, jnp.int32(1 << 22), pattern)
        if self.specials == "nan":
            pattern = jnp.where(low > self._top_code, jnp.int32(0x7FC00000), pattern)
        if self.specials == "ieee":
            # The top exponent of the element becomes the top exponent of float32; the mantissa tells NaN from inf.
            pattern = jnp.where(low > self._top_code, pattern | jnp.int32(0x7F800000), pattern)
        if self.zero and (not self.mantissa or not self.subnormals):
            pattern = jnp.where(low < 2**self.mantissa, jnp.int32(0), pattern)
        elif self.zero and self._bias != 127:
            step = jnp.float32(2.0 ** (1 - self._bias - self.mantissa))
            subnormal = lax.bitcast_convert_type(low.astype(jnp.float32) * step, jnp.int32)
            pattern = jnp.where(low < 2**self.mantissa, subnormal, pattern)
        if self.signed:
            pattern = pattern | ((code >> (self.bits - 1)) << 31)
        if self.specials == "fnuz":
            pattern = jnp.where(code == self._nan_code, jnp.int32(0x7FC00000), pattern)
        return lax.bitcast_convert_type(pattern, jnp.float32)

    def round(self, x: Array, table: Array | None = None) -> Array:
        """`decode(encode(x))` as float32."""
        return self.decode(self.encode(x))

    def neighbours(self, x: Array, table: Array | None = None) -> tuple[Array, Array]:
        """The representable values just below and above `x` (equal where `x` is one); both saturate."""
        nearest = self.round(x)
        code = self.encode(jnp.abs(nearest)).astype(jnp.int32)
        first = 1 if self.subnormals or not self.zero else 2**self.mantissa
        inner, outer = jnp.clip(code - 1, 0, self._top_code), jnp.clip(code + 1, first, self._top_code)
        a = jnp.minimum(jnp.abs(x), jnp.float32(self.max)) if self.signed else jnp.maximum(x, jnp.float32(self.min))
        a = jnp.minimum(a, jnp.float32(self.max))
        here = jnp.abs(nearest)
        near = self.decode(jnp.where(here > a, inner, code))
        far = self.decode(jnp.where(here < a, outer, code))
        negative = jnp.signbit(x) if self.signed else jnp.zeros_like(x, dtype=bool)
        return jnp.where(negative, -far, near), jnp.where(negative, -near, far)


def _pattern(value: float) -> Array:
    """The bits of a float32, for comparisons that XLA does not flush."""
    return jnp.int32(np.float32(value).view(np.int32))
