"""Fixed point: integers in units of a power of two (catalogue A8)."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array

from qjax.formats.integer import Int


@dataclass(frozen=True)
class Fixed:
    """Qm.n: `integer` bits, the sign among them, before the point and `fraction` bits behind it.

    A code k is the value k * 2^-n, clipped to -2^(m-1)..2^(m-1) - 2^-n, or to 0..2^m - 2^-n unsigned. Nearest, ties to
    even, NaN becomes 0. Dynamic fixed point, where n follows from the tensor's largest magnitude, is no element but a
    format: an `Int` under one power-of-two scale, "dfp8".

    >>> q = Fixed(3, 4)
    >>> q.name, q.bits, q.min, q.max
    ('q3.4', 7, -4.0, 3.9375)
    """

    integer: int
    fraction: int
    signed: bool = True

    def __post_init__(self) -> None:
        if self.integer < int(self.signed) or self.fraction < 0 or not 1 <= self.bits <= 16:
            raise ValueError(f"fixed point has 1..16 bits, a sign bit among the integer ones if signed, got {self}")

    @property
    def _codes(self) -> Int:
        return Int(self.bits, signed=self.signed)

    @property
    def _unit(self) -> np.float32:
        return np.float32(2.0**-self.fraction)

    @property
    def name(self) -> str:
        return f"{'' if self.signed else 'u'}q{self.integer}.{self.fraction}"

    @property
    def bits(self) -> int:
        return self.integer + self.fraction

    @property
    def code_dtype(self) -> str:
        return self._codes.code_dtype

    @property
    def min(self) -> float:
        return float(self._codes.min * self._unit)

    @property
    def max(self) -> float:
        return float(self._codes.max * self._unit)

    @property
    def top_exponent(self) -> int:
        """floor(log2(max))."""
        return self._codes.top_exponent - self.fraction

    def values(self) -> np.ndarray:
        """Value of every code as float32, in the order of the two's-complement bit pattern."""
        return self._codes.values() * self._unit

    def levels(self) -> np.ndarray:
        """The representable values, ascending."""
        return self._codes.levels() * self._unit

    def encode(self, x: Array, table: Array | None = None) -> Array:
        """Codes nearest to `x` (float32, any shape)."""
        return self._codes.encode(x / self._unit)

    def decode(self, codes: Array, table: Array | None = None) -> Array:
        """Values of `codes` as float32."""
        return self._codes.decode(codes) * self._unit

    def round(self, x: Array, table: Array | None = None) -> Array:
        """`decode(encode(x))` as float32."""
        return self.decode(self.encode(x))

    def neighbours(self, x: Array, table: Array | None = None) -> tuple[Array, Array]:
        """The representable values just below and above `x` (equal where `x` is one); both saturate."""
        low, high = self._codes.neighbours(jnp.asarray(x) / self._unit)
        return low * self._unit, high * self._unit
