"""Four-bit codes as indices into a table of sixteen values, looked up in registers.

A TPU gathers along the sublanes of a register, every lane for itself, with the table in the first of them: a table for
each column costs what one for all does. From v6e on
it gathers bytes, and four codes take one step for each byte of a value: the table is split into two floats of eight
bits, E4M3 for the leading half and E5M2 for what that leaves, exactly, and the matrix unit adds their products. v5e and
v5p gather words of four bytes, which hold the values of codes n and n + 8 as bfloat16; the eighth bit of a code says
which half. A float of eight significant bits is the sum of two such halves while it is at least 2^-14 of the table's
largest; below that it is met to 2^-20 of the largest.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu

from qjax.kernels.tpu.tiles import LANES

SIZE = 16


def split(table: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Float32 tables [16, n] rounded to bfloat16 as unit (high + low): E4M3, E5M2, and float32 powers of two [1, n].

    What is not finite is NaN.
    """
    table = _rounded(table)
    finite = jnp.isfinite(table)
    _, exponent = jnp.frexp(jnp.max(jnp.where(finite, jnp.abs(table), jnp.float32(0)), axis=0, keepdims=True))
    scaled = jnp.where(finite, jnp.ldexp(table, 8 - exponent), jnp.float32(jnp.nan))  # below 256, of E4M3's 448
    high = scaled.astype(jnp.float8_e4m3fn)
    low = (scaled - high.astype(jnp.float32)).astype(jnp.float8_e5m2)
    return high, low, jnp.ldexp(jnp.float32(1), exponent - 8)


def laid_out(table: jax.Array, lookup: str) -> tuple[jax.Array, jax.Array]:
    """What a kernel is given for float32 tables [16, n]: one for all columns (n = 1) or one for each.

    Returns an array [rows, max(n, LANES)] and what the sums of its columns are multiplied by, [1, n].
    """
    across = max(table.shape[1], LANES)
    if lookup == "bytes":
        high, low, unit = split(table)
        halves = [lax.bitcast_convert_type(jnp.tile(half, (2, 1)), jnp.int8) for half in (high, low)]
        return jnp.broadcast_to(jnp.concatenate(halves), (4 * SIZE, across)), unit
    bits = lax.bitcast_convert_type(table.astype(jnp.bfloat16), jnp.uint16).astype(jnp.uint32)
    words = lax.bitcast_convert_type(bits[:8] | (bits[8:] << jnp.uint32(16)), jnp.int32)
    return jnp.broadcast_to(words, (SIZE // 2, across)), jnp.ones((1, table.shape[1]), jnp.float32)


def by_bytes(stored: jax.Array, table: jax.Array) -> tuple[jax.Array, ...]:
    """Bytes [rows, n] of two codes -> high and low halves of the lower codes' values, then of the upper codes'.

    table: as `laid_out` gave it, [., LANES] for all columns or [., n]; here and in `by_words`.
    """
    words = pltpu.bitcast(stored, jnp.int32)
    halves = ((table[:32], jnp.float8_e4m3fn), (table[32:], jnp.float8_e5m2))
    return tuple(
        pltpu.bitcast(_taken(half, pltpu.bitcast((words >> shift) & 0x0F0F0F0F, jnp.int8)), dtype)
        for shift in (0, 4)
        for half, dtype in halves
    )


def by_words(stored: jax.Array, table: jax.Array) -> tuple[jax.Array, ...]:
    """Bytes [rows, n] of two codes -> the lower codes' values as bfloat16, then the upper codes'.

    A word of bfloat16 holds two rows and one of bytes four: each is taken twice, for its lower and its upper pair.
    """
    words = pltpu.bitcast(stored, jnp.int32)
    row = lax.broadcasted_iota(jnp.int32, (8, words.shape[1]), 0)
    pairs = [
        lax.shift_right_logical(_taken(words[tile : tile + 8], (row >> 1) + half), (row & 1) << 4)
        for tile in range(0, words.shape[0], 8)
        for half in (0, 4)
    ]
    swapped = lax.shift_right_logical(table, 16) | (table << 16)
    found = []
    for shift in (0, 4):
        values = []
        for pair in pairs:
            even, odd = pair >> shift, pair >> (shift + 8)
            low = lax.shift_right_logical(_taken(table, even & 7), (even & 8) << 1) & 0xFFFF
            high = (_taken(swapped, odd & 7) << ((odd & 8) << 1)) & -0x10000
            values.append(low | high)
        found.append(pltpu.bitcast(jnp.concatenate(values, axis=0), jnp.bfloat16))
    return tuple(found)


def decode(codes: jax.Array, table: jax.Array) -> jax.Array:
    """The values of codes [K, N] under tables [16, 1 or N] as float32, rounded to bfloat16; for the reference."""
    values = _rounded(jnp.asarray(table, jnp.float32))
    if values.shape[1] == 1:
        return values[:, 0][codes.astype(jnp.int32)]
    return jnp.take_along_axis(values, codes.astype(jnp.int32), axis=0)


def _rounded(table: jax.Array) -> jax.Array:
    return table.astype(jnp.bfloat16).astype(jnp.float32)


def _taken(source: jax.Array, index: jax.Array) -> jax.Array:
    """Entries source[index[i, j], j or j modulo LANES] of a register, for indices [rows, n] of its type."""
    rows, columns = source.shape
    dimensions = lax.GatherDimensionNumbers((), (0,), (0,), (1,), (1,))

    def tile(i: int, j: int) -> jax.Array:
        at = index[i : i + rows, j : j + LANES, None]
        start = j if columns > LANES else 0
        of = source[:, start : start + LANES]
        return lax.gather(of, at, dimensions, (1, 1), mode=lax.GatherScatterMode.PROMISE_IN_BOUNDS)

    return jnp.concatenate(
        [
            jnp.concatenate([tile(i, j) for j in range(0, index.shape[1], LANES)], axis=1)
            for i in range(0, index.shape[0], rows)
        ],
        axis=0,
    )
