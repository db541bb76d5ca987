"""How a weight's codes lie in memory for the TPU kernels, and what the matrix unit is given for them.

A kernel reads rows of codes and asks `operands` for what the unit multiplies: integers as bfloat16, or floats of eight
bits that it takes as they are. Scales are the kernel's affair; a new format is a new `Coding`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import tpu as pltpu

from qjax.formats import elements
from qjax.kernels.tpu.tiles import LANES


class Coding(NamedTuple):
    """Codes of a weight [K, N] as an array [K / packed, N] of `dtype`.

    `packed` 2: a byte holds two codes of a span of rows, the first half of which lies in the low nibbles.

    tile     : rows of the array in one tile of registers.
    operands : rows of the array -> `packed` arrays that the unit multiplies, exactly `factor` times the values.
    decode   : codes [K, N] -> their values as float32; for the reference.
    """

    name: str
    bits: int
    dtype: Any
    tile: int
    packed: int
    operands: Callable[[jax.Array], tuple[jax.Array, ...]]
    decode: Callable[[jax.Array], jax.Array]
    factor: float = 1.0

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


def pack_pairs(codes: jax.Array, span: int) -> jax.Array:
    """Codes [..., K, N] below 16 as bytes [..., K / (2 span), span, N]: row i of a byte beside row span + i."""
    *batch, K, N = codes.shape
    both = codes.astype(jnp.uint8).reshape(*batch, K // (2 * span), 2, span, N)
    return both[..., 0, :, :] | (both[..., 1, :, :] << jnp.uint8(4))


def unpack_pairs(pairs: jax.Array) -> jax.Array:
    """The inverse of `pack_pairs`: uint8 [..., K, N]."""
    *batch, spans, span, N = pairs.shape
    both = jnp.stack([pairs & jnp.uint8(15), pairs >> jnp.uint8(4)], axis=-3)
    return both.reshape(*batch, spans * 2 * span, N)


def _integers(codes: jax.Array) -> tuple[jax.Array, ...]:
    return (codes.astype(jnp.bfloat16),)


def _e2m1(pairs: jax.Array) -> tuple[jax.Array, ...]:
    """Nibbles of E2M1 as E5M2: the same bits under a longer exponent are 2^-14 times the value, subnormals included.

    Four bytes at a time: no unit of a TPU shifts bytes.
    """
    words = pltpu.bitcast(pairs, jnp.int32)
    low = ((words & 0x08080808) << 4) | ((words & 0x07070707) << 1)
    high = (words & -0x7F7F7F80) | ((words & 0x70707070) >> 3)
    return pltpu.bitcast(low, jnp.float8_e5m2), pltpu.bitcast(high, jnp.float8_e5m2)


def _float32(codes: jax.Array) -> jax.Array:
    return codes.astype(jnp.float32)


INT4 = Coding("w4a16", 4, jnp.int4, 64, 1, _integers, _float32)
INT8 = Coding("w8a16", 8, jnp.int8, 32, 1, _integers, _float32)
E2M1 = Coding("e2m1a16", 4, jnp.uint8, 32, 2, _e2m1, elements.E2M1.decode, 2.0**-14)


def refuse(coding: Coding, chip: str | None) -> str | None:
    """Why a chip of `aot.chips.CHIPS` (None: not known) cannot run a coding, or None."""
    if chip == "v4" and coding is E2M1:
        return "TPU v4 multiplies no floats of eight bits, and decoding to bfloat16 takes longer than reading it would"
    return None


def of(codes: jax.Array) -> Coding:
    """The coding of an array of integers that are their own values; ValueError for another dtype."""
    known = {jnp.dtype(coding.dtype): coding for coding in (INT4, INT8)}
    if codes.dtype not in known:
        raise ValueError(f"codes of {codes.dtype} do not say what they stand for: name a coding")
    return known[codes.dtype]
