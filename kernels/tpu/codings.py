"""How a weight's codes lie in memory for the TPU kernels, and what the matrix unit is given for them.

A kernel reads rows of codes and asks `operands` for what the unit multiplies: bfloat16, or floats of eight bits, which
it takes as they are. Scales are the kernel's affair; a new format is a new `Coding`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from qjax.formats import elements
from qjax.kernels.tpu import bfloat16_words, lookups
from qjax.kernels.tpu.tiles import LANES


class Coding(NamedTuple):
    """Codes of a weight [K, N] as an array [K / packed, N] of `dtype`.

    A byte holds `packed` codes of as many spans of rows, those of the first span in its lowest bits.

    tile     : rows of the array in one tile of registers.
    operands : rows of the array -> `packed` arrays that the unit multiplies, exactly `factor` (value + `above`).
    decode   : codes [K, N] -> their values as float32; for the reference.
    lookup   : None, or how codes are looked up in tables of their weight (`lookups.laid_out`), which `operands` and
               `decode` take as well. By "bytes" two arrays in a row have to be added to give an operand.
    stride   : the order of rows in operands, which x takes as well: `bfloat16_words.in_order`.
    scaled   : what scales meet under few rows of x, "sums" or "codes", where it is not the kernel's affair.
    packing  : (codes [..., K, N], span) -> stored, and back; where it is not `pack`.
    """

    name: str
    bits: int
    dtype: Any
    tile: int
    packed: int
    operands: Callable[..., tuple[jax.Array, ...]]
    decode: Callable[..., jax.Array]
    factor: float = 1.0
    above: int = 0
    lookup: str | None = None
    stride: int = 1
    scaled: str | None = None
    packing: tuple[Callable[[jax.Array, int], jax.Array], Callable[[jax.Array], jax.Array]] | None = None

    def stored(self, codes: jax.Array, span: int) -> jax.Array:
        """Codes [..., K, N], counted from the lowest, as they are stored: [..., K / (packed span), span, N]."""
        return pack(codes, span, self.packed) if self.packing is None else self.packing[0](codes, span)

    def restored(self, stored: jax.Array) -> jax.Array:
        """The inverse of `stored`: uint8 [..., K, N]."""
        return unpack(stored, self.packed) if self.packing is None else self.packing[1](stored)

    @property
    def summands(self) -> int:
        """Arrays of `operands` that are added to give one."""
        return 2 if self.lookup == "bytes" else 1

    def under(self, table: Any, here: Any) -> Coding:
        """The coding whose `operands` look up codes of columns `here` in a reference to laid out tables.

        These are [rows, LANES] for all columns of a block, or as wide as a block is.
        """
        own = table[...] if table.shape[1] == LANES else table[:, here]
        return self._replace(operands=functools.partial(self.operands, table=own))

    def span(self, K: int, group: int) -> int | None:
        """The rows that one product takes, under groups of `group`; None where no number of them fits.

        A long group is a span. Several short ones share one, that a unit 128 deep is not given 16 rows.
        """
        if self.packed == 1 and group >= LANES:
            return group if group % self.tile == 0 else None
        fitting = [
            rows
            for rows in range(self.tile, LANES + 1, self.tile)
            if K % (rows * self.packed) == 0 and (rows % group == 0 or group % rows == 0)
        ]
        return max(fitting, default=None)


def pack(codes: jax.Array, span: int, packed: int) -> jax.Array:
    """Codes [..., K, N] below 2^(8 / packed) as bytes [..., K / (packed span), span, N], of rows i, span + i, ..."""
    *batch, K, N = codes.shape
    parts = codes.astype(jnp.uint8).reshape(*batch, K // (packed * span), packed, span, N)
    shifted = [parts[..., i, :, :] << jnp.uint8(i * 8 // packed) for i in range(packed)]
    return functools.reduce(jnp.bitwise_or, shifted)


def unpack(stored: jax.Array, packed: int) -> jax.Array:
    """The inverse of `pack`: uint8 [..., K, N]."""
    *batch, spans, span, N = stored.shape
    mask = jnp.uint8(2 ** (8 // packed) - 1)
    parts = jnp.stack([(stored >> jnp.uint8(i * 8 // packed)) & mask for i in range(packed)], axis=-3)
    return parts.reshape(*batch, spans * packed * span, N)


def _bytes(codes: jax.Array) -> tuple[jax.Array, ...]:
    return (codes.astype(jnp.bfloat16),)


def _small(bits: int) -> Callable[[jax.Array], tuple[jax.Array, ...]]:
    """Unsigned integers of at most four bits as E4M3: below 2^-5 that format is linear, n is the code of n / 512.

    Four bytes at a time: no unit of a TPU shifts bytes.
    """
    mask = 0x01010101 * (2**bits - 1)

    def operands(stored: jax.Array) -> tuple[jax.Array, ...]:
        words = pltpu.bitcast(stored, jnp.int32)
        return tuple(pltpu.bitcast((words >> s) & mask, jnp.float8_e4m3fn) for s in range(0, 8, bits))

    return operands


def _e2m1(pairs: jax.Array) -> tuple[jax.Array, ...]:
    """Nibbles of E2M1 as E5M2: the same bits under a longer exponent are 2^-14 times the value, subnormals included."""
    words = pltpu.bitcast(pairs, jnp.int32)
    low = ((words & 0x08080808) << 4) | ((words & 0x07070707) << 1)
    high = (words & -0x7F7F7F80) | ((words & 0x70707070) >> 3)
    return pltpu.bitcast(low, jnp.float8_e5m2), pltpu.bitcast(high, jnp.float8_e5m2)


def _e4m3(codes: jax.Array) -> tuple[jax.Array, ...]:
    return (pltpu.bitcast(codes, jnp.float8_e4m3fn),)


def _less(above: int) -> Callable[[jax.Array], jax.Array]:
    return lambda codes: codes.astype(jnp.float32) - above


INT2 = Coding("w2a16", 2, jnp.uint8, 32, 4, _small(2), _less(2), 2.0**-9, 2)
INT4 = Coding("w4a16", 4, jnp.uint8, 32, 2, _small(4), _less(8), 2.0**-9, 8)
INT8 = Coding("w8a16", 8, jnp.int8, 32, 1, _bytes, _less(0))
E2M1 = Coding("e2m1a16", 4, jnp.uint8, 32, 2, _e2m1, elements.E2M1.decode, 2.0**-14)
E2M1_PAIRS = Coding(
    "e2m1pairs",
    8,
    jnp.uint16,
    16,
    2,
    bfloat16_words.e2m1,
    elements.E2M1.decode,
    4.0,
    scaled="codes",
    packing=(bfloat16_words.e2m1_pack, bfloat16_words.e2m1_unpack),
)
E4M3 = Coding("e4m3a16", 8, jnp.uint8, 32, 1, _e4m3, elements.E4M3.decode)
TABLE4 = Coding("t4a16", 4, jnp.uint8, 32, 2, lookups.by_bytes, lookups.decode, lookup="bytes")


def taken(coding: Coding, scaled: str, chip: str | None, group: int = bfloat16_words.TILE) -> Coding:
    """The coding as a kernel for scaled "sums" or "codes" takes it on a chip of `aot.chips.CHIPS` (None: not known).

    Small integers become bfloat16 where the unit has no floats of eight bits, and where scales meet the codes, since
    there they would be converted from either. Tables are looked up by words there too, since they give bfloat16, and on
    chips that gather no bytes. On v4 all integers become bfloat16 by words, unless scales of less than a tile of rows
    meet them, whose order would not be theirs.
    """
    if coding.lookup is not None:
        words = scaled == "codes" or chip in ("v5e", "v5p")
        return coding._replace(operands=lookups.by_words, lookup="words") if words else coding
    if chip == "v4" and coding.name in BY_WORDS and (scaled == "sums" or group % bfloat16_words.TILE == 0):
        return BY_WORDS[coding.name]
    if not coding.above or coding.factor == 1 or coding.stride > 1 or (scaled == "sums" and chip != "v4"):
        return coding

    def operands(stored: jax.Array) -> tuple[jax.Array, ...]:
        return tuple(pltpu.bitcast(w, jnp.int8).astype(jnp.bfloat16) for w in coding.operands(stored))

    return coding._replace(operands=operands, factor=1.0)


def _by_words(coding: Coding) -> Coding:
    """Integers of at most four bits, counted from the lowest n, as 1 + n / 2^bits."""
    top = 2**coding.bits
    return coding._replace(
        operands=bfloat16_words.small(coding.bits), factor=1 / top, above=top + coding.above, stride=2
    )


BY_WORDS = {coding.name: _by_words(coding) for coding in (INT2, INT4)}
BY_WORDS[INT8.name] = INT8._replace(operands=bfloat16_words.whole, stride=4)


def refuse(coding: Coding, chip: str | None) -> str | None:
    """Why a chip cannot run a coding, or None."""
    if chip == "v4" and coding.lookup is not None:
        return "TPU v4 gathers nothing along the sublanes of a register, where the table is"
    if chip == "v4" and coding in (E2M1, E4M3):
        return "TPU v4 multiplies no floats of eight bits" + (": prepare for tpu-v4" if coding == E2M1 else "")
    return None
