"""Matmul with group-scaled integers on CPU: a scan over groups, so that no more than one group is ever dequantized.

XLA:CPU does not fuse a dequantization into the dot that follows: the float weight is written to memory and read back.
Scanning over the groups of the contraction axis keeps the floats of one group in the cache. `pack_nibbles` stores two
codes a byte, the two halves of a group in the low and the high nibble, so that unpacking a group is a mask and a shift.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

STEP_ROWS = 64  # codes along K that one step of the scan unpacks, where groups are shorter


def pack_nibbles(codes: jax.Array, lowest: int, group: int) -> jax.Array:
    """Integer codes [..., K, N] within lowest..lowest + 15 as uint8 [..., K / group, group / 2, N]; group even.

    Byte i of a group holds code i in its low nibble and code group / 2 + i in its high one, both minus `lowest`.
    """
    *batch, K, N = codes.shape
    biased = (codes.astype(jnp.int32) - lowest).astype(jnp.uint8).reshape(*batch, K // group, 2, group // 2, N)
    return biased[..., 0, :, :] | (biased[..., 1, :, :] << jnp.uint8(4))


def unpack_nibbles(packed: jax.Array, lowest: int, dtype: str) -> jax.Array:
    """The inverse of `pack_nibbles`: codes [..., K, N] of the given dtype."""
    *batch, groups, half, N = packed.shape
    both = jnp.stack([packed & jnp.uint8(15), packed >> jnp.uint8(4)], axis=-3)
    return (both.astype(jnp.int32) + lowest).astype(dtype).reshape(*batch, groups * 2 * half, N)


def matmul(
    x: jax.Array, codes: jax.Array, scale: jax.Array, zero: jax.Array | float, minimum: jax.Array | None = None
) -> jax.Array:
    """x [M, K] @ W with W = scale * (codes - zero) + minimum, in float32 (float64 for such x): [M, N].

    codes: uint8 [G, g / 2, N] from `pack_nibbles`, or any integers [G, g, N], g = K / G; scale and minimum [G, N];
    zero a number or [G, N]. Agrees with `reference` up to the order of summation.
    """
    groups, rows, N = codes.shape
    M, K = x.shape
    size = K // groups
    per_step = max(d for d in range(1, groups + 1) if groups % d == 0 and (d == 1 or d * size <= STEP_ROWS))
    steps = groups // per_step
    width = jnp.float64 if x.dtype == jnp.float64 else jnp.float32

    def cut(a: Any) -> jax.Array | None:
        return a.astype(width).reshape(steps, per_step, N) if isinstance(a, jax.Array) else None

    def step(total: jax.Array, group: tuple) -> tuple[jax.Array, None]:
        x_s, codes_s, scale_s, zero_s, minimum_s = group
        for i in range(per_step):
            summed = x_s[i].sum(-1, keepdims=True)
            z = jnp.asarray(zero, width) if zero_s is None else zero_s[i][None]
            y = (_dot(x_s[i], codes_s[i * rows : (i + 1) * rows]) - summed * z) * scale_s[i][None]
            total += y if minimum_s is None else y + summed * minimum_s[i][None]
        return total, None

    x = x.astype(width).reshape(M, steps, per_step, size).transpose(1, 2, 0, 3)
    # No axis of length one among the codes: XLA would give it a layout that costs a copy of them all.
    inputs = (x, codes.reshape(steps, per_step * rows, N), cut(scale), cut(zero), cut(minimum))
    return lax.scan(step, jnp.zeros((M, N), width), inputs)[0]


def _dot(x: jax.Array, codes: jax.Array) -> jax.Array:
    """x [M, g] @ one group of codes, nibbles or bytes."""
    half = codes.shape[0]
    if x.shape[1] == half:
        return jnp.dot(x, codes.astype(x.dtype), precision="highest")
    low, high = (c.astype(x.dtype) for c in (codes & jnp.uint8(15), codes >> jnp.uint8(4)))
    return jnp.dot(x[:, :half], low, precision="highest") + jnp.dot(x[:, half:], high, precision="highest")


def reference(
    x: jax.Array, codes: jax.Array, scale: jax.Array, zero: jax.Array | float, minimum: jax.Array | None = None
) -> jax.Array:
    """What `matmul` computes, with the whole weight dequantized."""
    groups, rows, N = codes.shape
    K = x.shape[1]
    if groups * rows != K:
        codes = unpack_nibbles(codes, 0, "uint8").reshape(groups, K // groups, N)

    def spread(a: jax.Array) -> jax.Array:
        return jnp.broadcast_to(a[:, None], codes.shape)

    W = (codes.astype(jnp.float32) - (spread(zero) if isinstance(zero, jax.Array) else jnp.float32(zero))) * spread(
        scale
    )
    W = W if minimum is None else W + spread(minimum)
    return jnp.dot(x.astype(jnp.float32), W.reshape(K, N), precision="highest")
