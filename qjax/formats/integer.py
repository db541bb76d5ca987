"""Integer elements: int1..int16, full or narrow range, signed or unsigned."""

from __future__ import annotations

import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array, lax


@dataclass(frozen=True)
class Int:
    """The integers of `bits` bits; a code is the value itself (catalogue A1-A3).

    `narrow` leaves out the most negative code: a symmetric range has no bias to one side (catalogue B8);
    `signed=False` gives 0..2^bits-1. Codes are whole bytes (int8 or uint8, above 8 bits int16 or uint16): packing into
    native int4 costs XLA:CPU fifteen times the whole encoding; `qjax.nbytes` counts the true bits.

    >>> Int(4).min, Int(4).max, Int(4, narrow=True).min, Int(3, signed=False).max
    (-8.0, 7.0, -7.0, 7.0)
    """

    bits: int
    narrow: bool = False
    signed: bool = True

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= 16:
            raise ValueError(f"Int.bits must be 1..16, got {self.bits}")
        if self.narrow and (self.bits == 1 or not self.signed):
            raise ValueError(f"a narrow range needs a signed integer of at least 2 bits, got bits={self.bits}")

    @property
    def name(self) -> str:
        return f"{'' if self.signed else 'u'}int{self.bits}{'_narrow' if self.narrow else ''}"

    @property
    def code_dtype(self) -> str:
        return f"{'' if self.signed else 'u'}int{8 if self.bits <= 8 else 16}"

    @property
    def min(self) -> float:
        return float(-(2 ** (self.bits - 1)) + self.narrow) if self.signed else 0.0

    @property
    def max(self) -> float:
        return float(2 ** (self.bits - 1) - 1) if self.signed else float(2**self.bits - 1)

    @property
    def top_exponent(self) -> int:
        """floor(log2(max)), the emax of the MX specification; 0 for a one-bit signed integer."""
        return math.floor(math.log2(self.max)) if self.max > 0 else 0

    def values(self) -> np.ndarray:
        """Value of every code as float32, in the order of the two's-complement bit pattern."""
        pattern = np.arange(2**self.bits)
        if self.signed:
            pattern = np.where(pattern >= 2 ** (self.bits - 1), pattern - 2**self.bits, pattern)
        return pattern.astype(np.float32)

    def levels(self) -> np.ndarray:
        """The representable values, ascending and unique (a narrow range omits its unused code)."""
        values = np.sort(self.values())
        return values[values >= self.min]

    def encode(self, x: Array, table: Array | None = None) -> Array:
        """Codes nearest to `x` (float32, any shape): ties to even, saturating, NaN becomes 0."""
        x = jnp.clip(x, jnp.float32(self.min), jnp.float32(self.max))
        x = jnp.where(jnp.isnan(x), jnp.float32(0), x)
        # Beside 1.5 * 2^23 a float32 has no fraction left, and its low bits are the integer: a sum rounds and converts
        # at once, where XLA:CPU guards every conversion of a float against NaN and overflow again.
        return lax.bitcast_convert_type(x + jnp.float32(1.5 * 2**23), jnp.int32).astype(self.code_dtype)

    def decode(self, codes: Array, table: Array | None = None) -> Array:
        """Values of `codes` as float32; any integer dtype that holds the codes will do."""
        return codes.astype(jnp.float32)

    def round(self, x: Array, table: Array | None = None) -> Array:
        """`decode(encode(x))` as float32."""
        return self.decode(self.encode(x))

    def neighbours(self, x: Array, table: Array | None = None) -> tuple[Array, Array]:
        """The representable values just below and above `x` (equal where `x` is one); both saturate."""
        x = jnp.clip(jnp.where(jnp.isnan(x), jnp.float32(0), x), jnp.float32(self.min), jnp.float32(self.max))
        return jnp.floor(x), jnp.ceil(x)
