"""The block types of ggml, as data: what their blocks stand for, and the order of the bytes of a block.

A type is a `Format` (which values, which blocks, which scales), a block of so many elements, and the fields of a block
in the order of the file. A field is a run of bytes that hold certain bits of one part of the block. Read from
ggml-common.h and ggml-quants.c of llama.cpp, and from gguf.quants.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

from qjax.formats.elements import E2M1, E4M3, Element
from qjax.formats.format import FULL, Format, Offset
from qjax.formats.integer import Int
from qjax.formats.table import Table

Part = Literal["codes", "scales", "minima", "scale", "minimum"]
"""Of a block: its codes; the quantized scales and minima of its sub-blocks; its one scale and minimum above those."""


class Bits(NamedTuple):
    """Bits low..low+bits-1 of every value of `parts` (joined), 8/bits values a byte, least significant first.

    The values are cut into chunks of 8/bits*run; byte j of a chunk holds its values j, j + run, j + 2*run, ...
    """

    parts: tuple[Part, ...]
    bits: int
    run: int
    low: int = 0


class Half(NamedTuple):
    """One little-endian float16."""

    part: Part


class Sixes(NamedTuple):
    """Eight scales and eight minima of six bits in twelve bytes.

    Bytes 0-3 hold scales 0-3 and, above them, the upper two bits of scales 4-7; bytes 4-7 the minima likewise; bytes
    8-11 the lower four bits of scales 4-7 and, above them, of minima 4-7.
    """


class Trits(NamedTuple):
    """Five ternary digits of the codes a byte, the first the most significant, stored as ceil(256/243 of their value).

    Byte j of 32 holds the codes j + 32i of the first 160, of 16 the codes j + 16i of the next 80, and of 4 the codes
    j + 4i of the last 16, whose fifth digit is zero.
    """


Field = Bits | Half | Sixes | Trits


class Type(NamedTuple):
    """A block type of ggml.

    name   : ggml's name in lower case.
    block  : elements of a block; a row holds whole blocks.
    nbytes : bytes of a block.
    format : what its blocks stand for; `qjax.quantize` takes it, or its name.
    fields : the bytes of a block in their order.
    weighted : whether ggml's encoder takes importance.
    """

    name: str
    block: int
    nbytes: int
    format: Format
    fields: tuple[Field, ...]
    weighted: bool = True

    @property
    def bits_per_weight(self) -> float:
        """Bits of the file per element.

        >>> TYPES["q4_k"].bits_per_weight, TYPES["tq1_0"].bits_per_weight
        (4.5, 1.6875)
        """
        return 8 * self.nbytes / self.block

    @property
    def sizes(self) -> dict[Part, int]:
        """How many values each part of a block has."""
        sub = self.block // self.format.block
        return {"codes": self.block, "scales": sub, "minima": sub, "scale": 1, "minimum": 1}


IQ4_NL = Table("iq4_nl", (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113))
"""The sixteen levels of IQ4_NL (catalogue U3)."""


def bias(element: Element) -> int:
    """What a stored code exceeds the element's own by: signed integers of less than eight bits are stored from zero.

    >>> bias(Int(4)), bias(Int(2, narrow=True)), bias(Int(8)), bias(Int(5, signed=False))
    (8, 1, 0, 0)
    """
    return int(-element.min) if isinstance(element, Int) and element.bits < 8 else 0


def _unsigned(bits: int) -> Int:
    return Int(bits, signed=False)


def _plain(element: Element, block: int, offset: Offset | None = None) -> Format:
    """Blocks under a float16 scale, and a float16 minimum."""
    return Format(element, block, scale="float16", rule="ggml", offset=offset)


def _super(element: Element, block: int, scale: Int, count: int, offset: Offset | None = None) -> Format:
    """Blocks under quantized scales (and minima), `count` of them under one float16."""
    return Format(element, block, scale=_plain(scale, count), rule="ggml", offset=offset)


_D, _M = Half("scale"), Half("minimum")
_NIBBLES, _FIFTH = Bits(("codes",), 4, 16), Bits(("codes",), 1, 1, low=4)
_TERNARY = _plain(Int(2, narrow=True), 256)
_K4, _K5 = Bits(("codes",), 4, 32), Bits(("codes",), 1, 32, low=4)
_K2 = Bits(("codes",), 2, 32)
_Q3 = Bits(("codes",), 1, 32, low=2), _K2, Bits(("scales",), 4, 8), Bits(("scales",), 2, 4, low=4), _D
_Q6 = Bits(("codes",), 4, 64), Bits(("codes",), 2, 32, low=4), Bits(("scales",), 8, 1), _D
_MX = Format(E2M1, 32, scale="float8_e8m0fnu", rule="ggml")
_NV = Format(E2M1, 16, scale=Format(E4M3, FULL, FULL, scale="float32", rule="ggml"), rule="ggml")

TYPES: dict[str, Type] = {
    kind.name: kind
    for kind in (
        Type("q4_0", 32, 18, _plain(Int(4), 32), (_D, _NIBBLES)),
        Type("q4_1", 32, 20, _plain(_unsigned(4), 32, "minimum"), (_D, _M, _NIBBLES)),
        Type("q5_0", 32, 22, _plain(Int(5), 32), (_D, _FIFTH, _NIBBLES)),
        Type("q5_1", 32, 24, _plain(_unsigned(5), 32, "minimum"), (_D, _M, _FIFTH, _NIBBLES)),
        Type("q8_0", 32, 34, _plain(Int(8), 32), (_D, Bits(("codes",), 8, 1)), weighted=False),
        Type(
            *("q2_k", 256, 84, _super(_unsigned(2), 16, _unsigned(4), 16, "minimum")),
            fields=(Bits(("scales", "minima"), 4, 16), _K2, _D, _M),
        ),
        Type("q3_k", 256, 110, _super(Int(3), 16, Int(6), 16), _Q3),
        Type("q4_k", 256, 144, _super(_unsigned(4), 32, _unsigned(6), 8, "minimum"), (_D, _M, Sixes(), _K4)),
        Type("q5_k", 256, 176, _super(_unsigned(5), 32, _unsigned(6), 8, "minimum"), (_D, _M, Sixes(), _K5, _K4)),
        Type("q6_k", 256, 210, _super(Int(6), 16, Int(8), 16), _Q6),
        Type("iq4_nl", 32, 18, _plain(IQ4_NL, 32), (_D, _NIBBLES)),
        Type("tq1_0", 256, 54, _TERNARY, (Trits(), _D), weighted=False),
        Type("tq2_0", 256, 66, _TERNARY, (_K2, _D), weighted=False),
        Type("mxfp4", 32, 17, _MX, (Bits(("scale",), 8, 1), _NIBBLES), weighted=False),
        Type("nvfp4", 64, 36, _NV, (Bits(("scales",), 8, 1), Bits(("codes",), 4, 8)), weighted=False),
    )
}
"""Every type by its name (catalogue U1, U2, and IQ4_NL of U3)."""

_FALLBACK = dict(q2_k="q4_0", q3_k="q4_0", q4_k="q5_0", q5_k="q5_1", q6_k="q8_0", tq1_0="q4_0", tq2_0="q4_0")


def fallback(type: str, columns: int) -> str:
    """What llama.cpp stores rows of `columns` elements in when `type` is asked for: `type` itself where they fit.

    Types of blocks of 256 give way to one of 32 with more bits, and that to "f16" (llama.cpp's tensor_type_fallback).

    >>> fallback("q4_k", 512), fallback("q4_k", 576), fallback("q4_k", 100)
    ('q4_k', 'q5_0', 'f16')

    Raises:
        ValueError: an unknown type, or one of which llama.cpp defines no replacement and that does not fit.
    """
    if type not in TYPES:
        raise ValueError(f"unknown ggml type {type!r}; there are {', '.join(TYPES)}")
    if columns % TYPES[type].block == 0:
        return type
    if type not in _FALLBACK:
        raise ValueError(f"rows of {columns} are no whole blocks of {TYPES[type].block}, and {type} has no replacement")
    other = _FALLBACK[type]
    return other if columns % TYPES[other].block == 0 else "f16"
