"""Posits: a run of equal bits, the regime, in front of exponent and fraction (catalogue A17)."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from qjax.formats.table import look_up, place


@dataclass(frozen=True)
class Posit:
    """posit<bits, es> of the Posit Standard (2022, where es is 2) and of Gustafson and Yonemoto (2017), for any es.

    A code is the bit pattern as a two's-complement integer, in the order of the values. Encoding rounds as the
    standard does: half to even *on the pattern*, whose midpoint is the posit with one more bit; where exponent bits are
    cut off that is the geometric mean. Nothing rounds to zero and nothing beyond the largest value. NaN becomes NaR,
    which decodes to NaN; infinities, NaR in the standard, saturate as everywhere in qjax.

    >>> Posit(6, 1).levels()[-6:].tolist()
    [8.0, 12.0, 16.0, 32.0, 64.0, 256.0]
    """

    bits: int
    es: int = 2

    def __post_init__(self) -> None:
        if not 3 <= self.bits <= 16 or self.es < 0 or (self.bits - 2) << self.es > 126:
            raise ValueError(f"a posit has 3..16 bits and values within float32's normal range, got {self}")

    @property
    def name(self) -> str:
        return f"posit{self.bits}" + ("" if self.es == 2 else f"es{self.es}")

    @property
    def code_dtype(self) -> str:
        return "int8" if self.bits <= 8 else "int16"

    @property
    def max(self) -> float:
        return 2.0 ** ((self.bits - 2) << self.es)

    @property
    def min(self) -> float:
        return -self.max

    @property
    def top_exponent(self) -> int:
        """log2(max)."""
        return (self.bits - 2) << self.es

    def values(self) -> np.ndarray:
        """Value of every bit pattern 0..2^bits-1 as float32; NaR is NaN."""
        half = positive(self.bits, self.es)
        return np.concatenate([half, [np.nan], -half[:0:-1]]).astype(np.float32)

    def levels(self) -> np.ndarray:
        """The real values, ascending."""
        half = positive(self.bits, self.es)
        return np.concatenate([-half[:0:-1], half]).astype(np.float32)

    def encode(self, x: Array, table: Array | None = None) -> Array:
        """Codes of `x` (float32, any shape) by the standard's rounding; infinities saturate, NaN is NaR."""
        nar = -(2 ** (self.bits - 1))
        count = place(_cuts(self.bits, self.es), order(x))
        return jnp.where(jnp.isnan(x), jnp.int32(nar), count + (nar + 1)).astype(self.code_dtype)

    def decode(self, codes: Array, table: Array | None = None) -> Array:
        """Values of `codes` as float32."""
        ordered = np.concatenate([[np.float32(np.nan)], self.levels()])
        return look_up(ordered, codes.astype(jnp.int32) + 2 ** (self.bits - 1))

    def round(self, x: Array, table: Array | None = None) -> Array:
        """`decode(encode(x))` as float32."""
        return self.decode(self.encode(x))

    def neighbours(self, x: Array, table: Array | None = None) -> tuple[Array, Array]:
        """The representable values just below and above `x` (equal where `x` is one); both saturate."""
        code = self.encode(x).astype(jnp.int32)
        here, top = self.decode(code), 2 ** (self.bits - 1) - 1
        below = self.decode(jnp.where(here > x, jnp.maximum(code - 1, -top), code))
        above = self.decode(jnp.where(here < x, jnp.minimum(code + 1, top), code))
        return below, above


@functools.cache
def positive(bits: int, es: int) -> np.ndarray:
    """Values (float64, exact) of the non-negative patterns 0..2^(bits-1)-1, ascending."""
    values = [0.0]
    for pattern in range(1, 2 ** (bits - 1)):
        digits = f"{pattern:0{bits - 1}b}"
        run = len(digits) - len(digits.lstrip(digits[0]))
        regime = run - 1 if digits[0] == "1" else -run
        rest = digits[run + 1 :]
        exponent = int(rest[:es].ljust(es, "0") or "0", 2)
        fraction = rest[es:]
        values.append((1 + int(fraction or "0", 2) / 2 ** len(fraction)) * 2.0 ** ((regime << es) + exponent))
    return np.array(values)


@functools.cache
def _cuts(bits: int, es: int) -> np.ndarray:
    """For each pair of neighbouring values the least number that belongs to the upper one, in the units of `order`."""
    between = positive(bits + 1, es)[3:-2:2]  # behind pattern p = 1, 2, ... of `bits` bits
    even_below = np.arange(1, len(between) + 1) % 2 == 0
    middle = _order(between.astype(np.float32))
    upper = np.concatenate([[1], middle + even_below])  # positive numbers never round to zero
    lower = np.concatenate([[-1], -middle - 1 + ~even_below])[::-1]
    return np.concatenate([lower, upper]).astype(np.int32)


def order(x: Array) -> Array:
    """float32 numbers as int32 in the same order, subnormals included: n after n-1; +0 is 0 and -0 is -1."""
    bits = lax.bitcast_convert_type(x, jnp.int32)
    return bits ^ ((bits >> 31) & jnp.int32(0x7FFFFFFF))


def _order(x: np.ndarray) -> np.ndarray:
    bits = x.view(np.int32)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)
