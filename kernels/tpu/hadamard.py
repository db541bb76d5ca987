"""x * signs @ H by blocks of channels, in vector memory: the fast Hadamard transform in front of a product, on TPUs.

H is a Kronecker product of Sylvester's matrices and one of Paley's (`Hadamard.sylvester`), and its factors commute, so
that the last 128 channels come first: one product of x with entries of +-1 on the matrix unit, where bfloat16 is exact
and sums are float32. What is left of H mixes whole tiles of lanes, and is additions of float32: Sylvester's by
butterflies, Paley's (12, 20, 28) written out. Nothing is rounded to bfloat16 on the way, and 1 / sqrt(size) is left to
a scale behind.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from qjax.kernels.tpu.tiles import LANES
from qjax.operators.maps.hadamard import hadamard_factors, sylvester_matrix
from qjax.operators.maps.kronecker import kronecker_product

RADIX = 8  # tiles mixed at a time by butterflies
WRITTEN = 28  # the largest of Paley's factors that is written out: its square in additions
WIDE = 16  # tiles of lanes that meet the matrix unit at a time
SUBLANES = 8


def refuse(K: int, size: int) -> str | None:
    """Why K channels cannot be mixed in blocks of `size` here, or None; ValueError where no such matrix is known."""
    if K % size:
        return f"blocks of {size} channels do not divide {K}"
    paley = _paley(size)
    if size // paley % LANES:
        return f"blocks of {size} channels are {paley} x {size // paley}: it mixes {LANES} x 2^k channels, or such"
    return f"a factor of {paley} in blocks of {size} channels is larger than {WRITTEN}" if paley > WRITTEN else None


def operands(signs: jax.Array | None, dtype: Any) -> list[jax.Array]:
    """What `transform` multiplies x of a type with: the factor of the last 128 channels, +-1 [128, 128] of that type.

    And where there are signs [K] of +-1, the bits they turn over in words of x, int32 [1, K]: two to one of bfloat16.
    """
    lanes = jnp.asarray(np.sign(sylvester_matrix(LANES)), dtype)
    if signs is None:
        return [lanes]
    bits = np.uint32(0x80008000 if dtype == jnp.bfloat16 else 0x80000000).astype(np.int32)
    return [lanes, jnp.where(signs < 0, bits, np.int32(0))[None, :]]


def transform(x_ref: Any, rows: Any, operand_refs: Sequence[Any], z_ref: Any, size: int) -> None:
    """In a kernel: z [R, K] float32 = x[rows] [R, K] * signs @ H * sqrt(size), R whole tiles of rows."""
    (R, K), (lanes_ref, *flips) = z_ref.shape, operand_refs
    wide = next(n for n in range(WIDE, 0, -1) if K // LANES % n == 0)
    exact = None if x_ref.dtype == jnp.bfloat16 else lax.Precision.HIGHEST

    def product(i: Any, carry: None) -> None:
        here = pl.ds(pl.multiple_of(i * wide * LANES, wide * LANES), wide * LANES)
        x = x_ref[rows, here]
        for flips_ref in flips:
            x = pltpu.bitcast(pltpu.bitcast(x, jnp.int32) ^ flips_ref[:, here], x.dtype)
        tall = jnp.concatenate([x[:, t * LANES : (t + 1) * LANES] for t in range(wide)], axis=0)
        y = jnp.dot(tall, lanes_ref[...], preferred_element_type=jnp.float32, precision=exact)
        for t in range(wide):
            z_ref[:, _lanes(i * wide + t)] = y[t * R : (t + 1) * R]

    lax.fori_loop(0, K // LANES // wide, product, None)
    stride = size // LANES
    for n, matrix in _tile_factors(size):
        stride //= n
        _mix(z_ref, n, matrix, stride)


def _mix(z_ref: Any, n: int, matrix: np.ndarray | None, stride: int) -> None:
    """One factor of n tiles that lie `stride` apart, in place: Sylvester's where no matrix is given."""
    R, K = z_ref.shape
    height = R if matrix is None else SUBLANES  # so that n tiles stay in registers
    parts = R // height

    def mix(i: Any, carry: None) -> None:
        rows = pl.ds(pl.multiple_of(lax.rem(i, parts) * height, height), height)
        group = lax.div(i, parts)
        first = lax.div(group, stride) * (n * stride) + lax.rem(group, stride)
        found = [z_ref[rows, _lanes(first + j * stride)] for j in range(n)]
        mixed = butterflies(found) if matrix is None else [_signed_sum(found, column) for column in matrix.T]
        for j, tile in enumerate(mixed):
            z_ref[rows, _lanes(first + j * stride)] = tile

    lax.fori_loop(0, K // LANES // n * parts, mix, None)


def butterflies(x: Sequence[jax.Array]) -> list[jax.Array]:
    """Sylvester's matrix of len(x) = 2^k, not normalized, times the arrays.

    >>> butterflies([1.0, 2.0, 3.0, 4.0])
    [10.0, -2.0, -4.0, 0.0]
    """
    if len(x) == 1:
        return list(x)
    half = len(x) // 2
    pairs = list(zip(butterflies(x[:half]), butterflies(x[half:]), strict=True))
    return [a + b for a, b in pairs] + [a - b for a, b in pairs]


def _signed_sum(x: Sequence[jax.Array], signs: np.ndarray) -> jax.Array:
    total = x[0] if signs[0] > 0 else -x[0]
    for tile, sign in zip(x[1:], signs[1:], strict=True):
        total = total + tile if sign > 0 else total - tile
    return total


def _lanes(tile: Any) -> Any:
    return pl.ds(pl.multiple_of(tile * LANES, LANES), LANES)


def _paley(size: int) -> int:
    """The size of the first factor where it is Paley's, else 1."""
    first = hadamard_factors(size, sylvester=True)[0].shape[0]
    return first if first & (first - 1) else 1


def _tile_factors(size: int) -> list[tuple[int, np.ndarray | None]]:
    """What H consists of beside its last 128 channels: Paley's factor with its signs, and powers of two without."""
    paley = _paley(size)
    found: list[tuple[int, np.ndarray | None]] = []
    if paley > 1:
        found.append((paley, np.sign(hadamard_factors(size, sylvester=True)[0])))
    rest = size // paley // LANES
    while rest > 1:
        found.append((min(rest, RADIX), None))
        rest //= found[-1][0]
    return found


def reference(x: jax.Array, signs: jax.Array | None, size: int) -> jax.Array:
    """What `transform` computes, by XLA and for every size: x [M, K] * signs [K] @ H * sqrt(size), float32 [M, K]."""
    rows = x.astype(jnp.float32)
    rows = rows if signs is None else rows * signs.astype(jnp.float32)[None, :]
    return kronecker_product(rows, [np.sign(factor) for factor in hadamard_factors(size, sylvester=True)])


def shrink(size: int) -> np.float32:
    """What `transform` leaves out."""
    return np.float32(1 / math.sqrt(size))
