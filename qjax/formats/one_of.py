"""An element that is one of several, by an index that each block carries: what a choice among formats decodes with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jax import Array

if TYPE_CHECKING:
    from qjax.formats.elements import Element


@dataclass(frozen=True)
class OneOf:
    """Elements of one width; the block's table [..., 1] says which (uint8), 0 where it has none.

    A code is the bit pattern under the chosen element (two's complement for signed integers), so all share the width
    and a block costs log2(n) bits more. `values` are the first element's, `levels` those of all.

    >>> from qjax.formats import Int
    >>> OneOf((Int(4), Int(4, narrow=True))).choice_bits
    1
    """

    elements: tuple[Element, ...]

    def __post_init__(self) -> None:
        if not 2 <= len(self.elements) <= 256:
            raise ValueError(f"OneOf takes 2 to 256 elements, got {len(self.elements)}")
        if len({e.bits for e in self.elements}) > 1:
            widths = ", ".join(f"{e.name} {e.bits}" for e in self.elements)
            raise ValueError(f"codes share one width, but the elements have bits {widths}")

    @property
    def name(self) -> str:
        return "|".join(e.name for e in self.elements)

    @property
    def bits(self) -> int:
        return self.elements[0].bits

    @property
    def choice_bits(self) -> int:
        """Bits of the index that each block stores."""
        return (len(self.elements) - 1).bit_length()

    @property
    def code_dtype(self) -> str:
        return "uint8" if self.bits <= 8 else "uint16"

    @property
    def min(self) -> float:
        return min(e.min for e in self.elements)

    @property
    def max(self) -> float:
        return max(e.max for e in self.elements)

    @property
    def top_exponent(self) -> int:
        """That of the element that reaches farthest."""
        return max(e.top_exponent for e in self.elements)

    def values(self) -> np.ndarray:
        """Value of every bit pattern under the first element that has a finite one, NaN where none has."""
        out = np.full(2**self.bits, np.nan, np.float32)
        for e in reversed(self.elements):
            values = e.values()
            finite = np.isfinite(values)
            out[: len(values)][finite] = values[finite]
        return out

    def levels(self) -> np.ndarray:
        """The values of all elements, ascending and unique."""
        return np.unique(np.concatenate([e.levels() for e in self.elements]))

    def encode(self, x: Array, table: Array | None = None) -> Array:
        """The chosen element's codes nearest to `x`, as bit patterns."""
        return self._chosen(table, [_pattern(e, e.encode(x)).astype(self.code_dtype) for e in self.elements])

    def decode(self, codes: Array, table: Array | None = None) -> Array:
        """Values of `codes` under the chosen element as float32."""
        return self._chosen(table, [e.decode(_code(e, codes)) for e in self.elements])

    def round(self, x: Array, table: Array | None = None) -> Array:
        """`decode(encode(x))` as float32."""
        return self._chosen(table, [e.round(x) for e in self.elements])

    def neighbours(self, x: Array, table: Array | None = None) -> tuple[Array, Array]:
        """The chosen element's values just below and above `x`; both saturate."""
        below, above = zip(*[e.neighbours(x) for e in self.elements], strict=True)
        return self._chosen(table, below), self._chosen(table, above)

    def _chosen(self, table: Array | None, options: Sequence[Array]) -> Array:
        return options[0] if table is None else select(table[..., 0], options)


def select(index: Array, options: Sequence[Array]) -> Array:
    """`options[index]` elementwise; `index` broadcasts against them."""
    out = options[0]
    for i, option in enumerate(options[1:], start=1):
        out = jnp.where(index == i, option, out)
    return out


def _pattern(e: Element, codes: Array) -> Array:
    """Codes of `e` as unsigned bit patterns: signed ones in two's complement of its width."""
    return codes & ((1 << e.bits) - 1) if _signed(e) else codes


def _code(e: Element, pattern: Array) -> Array:
    """The inverse of `_pattern`."""
    if not _signed(e):
        return pattern
    sign = 1 << (e.bits - 1)
    return (pattern.astype(jnp.int32) ^ sign) - sign


def _signed(e: Element) -> bool:
    return np.dtype(e.code_dtype).kind == "i"
