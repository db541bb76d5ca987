"""Codes made bfloat16 by words of four bytes, where the matrix unit takes nothing narrower: TPU v4.

Nothing there unpacks bytes in registers: a conversion of int8 goes through vector memory. But a word is two bfloat16
entries of neighbouring rows, and shifts and masks put the bits of a code where bfloat16 has them, two codes at a time.
What a byte's position in its word makes of the order of rows, the rows of x follow (`in_order`).

E2M1 has a value that such masks cannot give, 0.5, a subnormal: so it is re-encoded, exactly, in half of bfloat16's
bits. A code becomes the five bits of its bfloat16 that differ between codes, and two lie in a word of 16 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.pallas import tpu as pltpu

from qjax.kernels.tpu.tiles import LANES

TILE = 32  # rows of bytes in a tile of registers
SIGN, NONZERO = 0x8000, 0x4000  # of a code of E2M1 in 16 bits
PLACE = 6  # from where on it has one bit of mantissa and two of exponent
APART = 3  # by how many bits the second of two such codes lies below the first


def in_order(x: jax.Array, stride: int) -> jax.Array:
    """x [M, K] with the columns of every 32 so that those come first that are multiples of `stride`, and so on.

    The order in which operands of that stride have the rows of a weight. By a product with a permutation, which is
    exact and takes a ninth of the bundles of XLA's transpositions; an infinity becomes NaN, and its neighbours do.
    """
    if stride == 1:
        return x
    (M, K), width = x.shape, math.gcd(x.shape[1], LANES)
    source = np.arange(width).reshape(-1, TILE // stride, stride).swapaxes(1, 2).reshape(-1)
    order = jnp.asarray(np.eye(width)[:, source], x.dtype)
    return jnp.einsum("mtk,kn->mtn", x.reshape(M, K // width, width), order).reshape(M, K)


def small(bits: int) -> Callable[[jax.Array], tuple[jax.Array, ...]]:
    """Unsigned integers n of at most four bits, several to a byte, as 1 + n / 2^bits, even rows of a tile first."""
    place = 7 - bits  # in the mantissa
    mask = (2**bits - 1 << place) * 0x00010001

    def operands(stored: jax.Array) -> tuple[jax.Array, ...]:
        words = pltpu.bitcast(stored, jnp.int32)

        def rows(shift: int) -> jax.Array:
            moved = words >> shift - place if shift > place else words << place - shift
            return pltpu.bitcast(moved & mask | 0x3F803F80, jnp.bfloat16)

        return tuple(_alternating([rows(shift), rows(shift + 8)], 16) for shift in range(0, 8, bits))

    return operands


def whole(stored: jax.Array) -> tuple[jax.Array, ...]:
    """Codes of int8 as bfloat16: of every tile the rows 0, 4, ..., 28, then 1, 5 and so on."""
    words = pltpu.bitcast(stored, jnp.int32)
    parts = [(words << 24 - 8 * i >> 24).astype(jnp.float32) for i in range(4)]
    return (_alternating(parts, 8).astype(jnp.bfloat16),)


def _alternating(parts: list[jax.Array], height: int) -> jax.Array:
    """The first `height` rows of each, then the next of each."""
    tiles = [part[start : start + height] for start in range(0, parts[0].shape[0], height) for part in parts]
    return jnp.concatenate(tiles, axis=0)


def e2m1_pack(codes: jax.Array, span: int) -> jax.Array:
    """Codes of E2M1 [..., K, N] as uint16 [..., K / (2 span), span, N], of rows i and span + i.

    Bits 15 and 14 of the first: its sign and whether it is not zero. Bits 8 to 6: its lower three bits, but zeros for
    0.5. As bfloat16 it is four times its value. The bits of the second lie three lower, the others are zeros.
    """
    *batch, K, N = codes.shape
    wide = codes.astype(jnp.uint16).reshape(*batch, K // (2 * span), 2, span, N)
    size, none = wide & 7, jnp.uint16(0)
    nonzero = jnp.where(size > 0, jnp.uint16(NONZERO), none)
    bits = (wide >> 3) << 15 | nonzero | jnp.where(size > 1, size, none) << PLACE
    return bits[..., 0, :, :] | bits[..., 1, :, :] >> APART


def e2m1_unpack(stored: jax.Array) -> jax.Array:
    """The inverse: uint8 [..., K, N], negative zeros included."""
    *batch, spans, span, N = stored.shape
    bits = jnp.stack([stored, stored << APART], axis=-3).reshape(*batch, spans * 2 * span, N)
    size = jnp.maximum(bits >> PLACE & 7, jnp.uint16(1))
    return ((bits & SIGN) >> 12 | jnp.where(bits & NONZERO > 0, size, jnp.uint16(0))).astype(jnp.uint8)


def e2m1(stored: jax.Array) -> tuple[jax.Array, ...]:
    """What `e2m1_pack` stored, as bfloat16: four times the value, every row in its place."""
    mask = ~((~(SIGN | NONZERO | 7 << PLACE) & 0xFFFF) * 0x00010001)
    words = pltpu.bitcast(stored, jnp.int32)
    return tuple(pltpu.bitcast(moved & mask, jnp.bfloat16) for moved in (words, words << APART))
