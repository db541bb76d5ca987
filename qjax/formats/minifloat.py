"""Minifloats: any ExMy of at most eight bits, with the standards' special values (catalogue A10-A13)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

Specials = Literal["none", "nan", "ieee"]


@dataclass(frozen=True)
class Float:
    """Sign, `exponent` and `mantissa` bits; a code is the bit pattern in a uint8 (OCP FP8, OCP MX v1.0).

    `specials`: "none" (every code is finite), "nan" (only all ones, as in E4M3 and E8M0) or "ieee" (the top exponent
    holds inf and NaN, as in E5M2). `subnormals=False` means that the lowest exponent is an ordinary binade, so that
    there is no zero (E8M0). `bias=None` is 2^(exponent-1)-1.

    >>> Float(2, 1, specials="none").levels().tolist()
    [-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
    """

    exponent: int
    mantissa: int
    bias: int | None = None
    specials: Specials = "none"
    subnormals: bool = True
    signed: bool = True

    def __post_init__(self) -> None:
        if self.bias is None:
            object.__setattr__(self, "bias", 2 ** (self.exponent - 1) - 1)
        if self.exponent < 1 or self.mantissa < 0 or self.bits > 8:
            raise ValueError(f"a minifloat has exponent >= 1, mantissa >= 0 and at most 8 bits, got {self}")
        if self.specials == "ieee" and self.mantissa == 0:
            raise ValueError(f"IEEE specials need a mantissa bit to tell NaN from infinity, got {self}")
        if self._top_code < 0:
            raise ValueError(f"no finite code is left beside the special values of {self}")
        lowest = 1 - self._bias if self.subnormals else -self._bias
        # Every step (ulp) and its reciprocal must be a normal float32: XLA flushes subnormals to zero. The one
        # exception is 2^-127 as the smallest E8M0 scale, which is handled by its bit pattern.
        smallest = -127 if self.mantissa == 0 and not self.subnormals else -126 + self.mantissa
        if lowest < smallest or self.top_exponent > 127:
            raise ValueError(f"exponents {lowest}..{self.top_exponent} of {self} do not fit float32 arithmetic")

    @property
    def _bias(self) -> int:
        assert self.bias is not None
        return self.bias

    @property
    def _top_code(self) -> int:
        """Largest finite code, sign bit clear."""
        last = 2 ** (self.exponent + self.mantissa) - 1
        return {"none": last, "nan": last - 1, "ieee": last - 2**self.mantissa}[self.specials]

    @property
    def bits(self) -> int:
        return self.exponent + self.mantissa + self.signed

    @property
    def name(self) -> str:
        base = f"e{self.exponent}m{self.mantissa}"
        usual = {"e4m3": "nan", "e8m0": "nan", "e5m3": "nan", "e5m2": "ieee"}.get(base, "none")
        zero = self.subnormals == (base != "e8m0")
        unsigned = not self.signed and base != "e8m0"
        return (
            ("u" if unsigned else "")
            + base
            + ("" if self._bias == 2 ** (self.exponent - 1) - 1 else f"b{self._bias}")
            + ("" if self.specials == usual else f"_{self.specials}")
            + ("" if zero else "_nosubnormals" if not self.subnormals else "_subnormals")
        )

    @property
    def code_dtype(self) -> str:
        return "uint8"

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
        if self.subnormals:
            normal = np.where(power == 0, np.ldexp(1.0 * fraction, 1 - self._bias - self.mantissa), normal)
        return normal

    def values(self) -> np.ndarray:
        """Value of every code as float32, NaN and infinities included."""
        code = np.arange(2**self.bits)
        low = code & (2 ** (self.exponent + self.mantissa) - 1)
        value = self._magnitude(np.minimum(low, self._top_code))
        value[low > self._top_code] = np.nan
        if self.specials == "ieee":
            value[low == self._top_code + 1] = np.inf
        return np.where(low == code, value, -value).astype(np.float32)

    def levels(self) -> np.ndarray:
        """The finite representable values, ascending and unique (one zero)."""
        values = self.values()
        return np.unique(values[np.isfinite(values)] + np.float32(0))

    def encode(self, x: Array, table: Array | None = None) -> Array:
        """Codes nearest to `x` (float32, any shape): ties to even, saturating at the largest finite value.

        Infinities saturate too. NaN becomes the element's NaN (sign dropped), or zero where it has none. The sign of
        a zero is kept by signed elements; unsigned ones send negatives to their smallest value.
        """
        sign = (lax.bitcast_convert_type(x, jnp.uint32) >> 31).astype(jnp.int32)
        nan = jnp.isnan(x)
        a = jnp.where(nan, jnp.float32(0), jnp.abs(x) if self.signed else jnp.maximum(x, jnp.float32(0)))
        code = self._encode_magnitude(jnp.minimum(a, jnp.float32(self.max)))
        if self.signed:
            code = code | (sign << (self.bits - 1))
        code = jnp.where(nan, jnp.int32(0 if self.specials == "none" else 2 ** (self.bits - self.signed) - 1), code)
        return code.astype(jnp.uint8)

    def _encode_magnitude(self, a: Array) -> Array:
        pattern = lax.bitcast_convert_type(a, jnp.int32)
        if not self.subnormals:
            return self._encode_bits(pattern)
        # In units of the ulp of its binade, a normal number lies in [2^m, 2^(m+1)] and a subnormal in [0, 2^m]; adding
        # the binade's index times 2^m gives the code, and a carry into the next binade comes out right by itself.
        exponent = jnp.maximum(pattern >> 23, jnp.int32(128 - self._bias))
        per_ulp = lax.bitcast_convert_type((254 + self.mantissa - exponent) << 23, jnp.float32)
        return jnp.round(a * per_ulp).astype(jnp.int32) + ((exponent - (128 - self._bias)) << self.mantissa)

    def _encode_bits(self, pattern: Array) -> Array:
        """Round half to even on the float32 pattern: without subnormals every binade is cut the same way.

        Without mantissa bits the significand to be kept is the odd 1, so that every tie goes up, as in ml_dtypes.
        """
        cut = 23 - self.mantissa
        odd = (pattern >> cut) & 1 if self.mantissa else 1
        rounded = (pattern + ((1 << (cut - 1)) - 1) + odd) >> cut
        if self._bias == 127:  # 2^-127 is a float32 subnormal: its midpoint to 2^-126 is at 0x600000
            rounded = jnp.where(pattern < (1 << 23), (pattern >= 0x600000).astype(jnp.int32), rounded)
        return jnp.clip(rounded - ((127 - self._bias) << self.mantissa), 0, self._top_code)

    def decode(self, codes: Array, table: Array | None = None) -> Array:
        """Values of `codes` (uint8 bit patterns) as float32, special values included."""
        code = codes.astype(jnp.int32)
        low = code & (2 ** (self.exponent + self.mantissa) - 1)
        pattern = (low << (23 - self.mantissa)) + ((127 - self._bias) << 23)
        if not self.subnormals and self._bias == 127:
            pattern = jnp.where(low == 0, jnp.int32(1 << 22), pattern)
        if self.specials == "nan":
            pattern = jnp.where(low > self._top_code, jnp.int32(0x7FC00000), pattern)
        if self.specials == "ieee":
            # The top exponent of the element becomes the top exponent of float32; the mantissa tells NaN from inf.
            pattern = jnp.where(low > self._top_code, pattern | jnp.int32(0x7F800000), pattern)
        if self.subnormals:
            step = jnp.float32(2.0 ** (1 - self._bias - self.mantissa))
            subnormal = lax.bitcast_convert_type(low.astype(jnp.float32) * step, jnp.int32)
            pattern = jnp.where(low < 2**self.mantissa, subnormal, pattern)
        if self.signed:
            pattern = pattern | ((code >> (self.bits - 1)) << 31)
        return lax.bitcast_convert_type(pattern, jnp.float32)

    def round(self, x: Array, table: Array | None = None) -> Array:
        """`decode(encode(x))` as float32."""
        return self.decode(self.encode(x))

    def neighbours(self, x: Array, table: Array | None = None) -> tuple[Array, Array]:
        """The representable values just below and above `x` (equal where `x` is one); both saturate."""
        nearest = self.round(x)
        code = self.encode(jnp.abs(nearest)).astype(jnp.int32)
        inner, outer = jnp.clip(code - 1, 0, self._top_code), jnp.clip(code + 1, 0, self._top_code)
        a = jnp.minimum(jnp.abs(x), jnp.float32(self.max)) if self.signed else jnp.maximum(x, jnp.float32(self.min))
        a = jnp.minimum(a, jnp.float32(self.max))
        here = jnp.abs(nearest)
        near = self.decode(jnp.where(here > a, inner, code))
        far = self.decode(jnp.where(here < a, outer, code))
        negative = jnp.signbit(x) if self.signed else jnp.zeros_like(x, dtype=bool)
        return jnp.where(negative, -far, near), jnp.where(negative, -near, far)
