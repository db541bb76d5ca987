"""Dense bit packing: codes of 1..16 bits in bytes, least significant bit first, element i at bit i*bits."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array


@functools.partial(jax.jit, static_argnames="bits")
def pack(codes: Array, bits: int) -> Array:
    """Packs integer `codes` [..., n] along the last axis into uint8 [..., ceil(n*bits/8)].

    Negative codes are stored in two's complement of `bits` bits; unused bits at the end are zero. Dense also for
    3, 5, 6, 7 and more than 8 bits: an element may cross bytes (the order of compressed-tensors >= 0.18 and of GPTQ).

    >>> pack(jnp.array([1, 2, 3, 15], jnp.uint8), 4).tolist()
    [33, 243]
    """
    unit, per = _unit(bits)
    n = codes.shape[-1]
    groups = -(-n // per)
    low = codes.astype(jnp.int32).astype(jnp.uint32) & jnp.uint32(2**bits - 1)
    low = jnp.pad(low, [(0, 0)] * (codes.ndim - 1) + [(0, groups * per - n)])
    low = low.reshape(*codes.shape[:-1], groups, per)
    out = []
    for byte in range(unit):
        parts = jnp.zeros(low.shape[:-1], jnp.uint32)
        for i in range(per):
            shift = i * bits - 8 * byte
            if -bits < shift < 8:
                part = low[..., i]
                parts = parts | (part << shift if shift >= 0 else part >> -shift)
        out.append((parts & jnp.uint32(0xFF)).astype(jnp.uint8))
    packed = jnp.stack(out, axis=-1).reshape(*codes.shape[:-1], groups * unit)
    return packed[..., : -(-n * bits // 8)]


@functools.partial(jax.jit, static_argnames=("bits", "n", "signed"))
def unpack(packed: Array, bits: int, n: int, signed: bool = False) -> Array:
    """The inverse of `pack`: uint8 [..., m] to `n` codes along the last axis, int8 if `signed` else uint8.

    Above 8 bits they are int16 or uint16.

    >>> unpack(pack(jnp.array([-8, 7, -1], jnp.int8), 4), 4, 3, signed=True).tolist()
    [-8, 7, -1]
    """
    if packed.shape[-1] != -(-n * bits // 8):
        raise ValueError(f"{n} codes of {bits} bits take {-(-n * bits // 8)} bytes, got {packed.shape[-1]}")
    unit, per = _unit(bits)
    groups = -(-n // per)
    data = jnp.pad(packed, [(0, 0)] * (packed.ndim - 1) + [(0, groups * unit - packed.shape[-1])])
    data = data.reshape(*packed.shape[:-1], groups, unit).astype(jnp.uint32)
    out = []
    for i in range(per):
        code = jnp.zeros(data.shape[:-1], jnp.uint32)
        for byte in range(unit):
            shift = i * bits - 8 * byte
            if -bits < shift < 8:
                code = code | (data[..., byte] >> shift if shift >= 0 else data[..., byte] << -shift)
        out.append(code & jnp.uint32(2**bits - 1))
    codes = jnp.stack(out, axis=-1).reshape(*packed.shape[:-1], groups * per)[..., :n].astype(jnp.int32)
    if not signed:
        return codes.astype(jnp.uint8 if bits <= 8 else jnp.uint16)
    return ((codes ^ (1 << (bits - 1))) - (1 << (bits - 1))).astype(jnp.int8 if bits <= 8 else jnp.int16)


def _unit(bits: int) -> tuple[int, int]:
    """Bytes and codes of the shortest run that ends on a byte."""
    if not 1 <= bits <= 16:
        raise ValueError(f"codes have 1..16 bits, got {bits}")
    span = math.lcm(bits, 8)
    return span // 8, span // bits


def words(packed: Array) -> Array:
    """Packed bytes [..., m] as little-endian int32 words [..., ceil(m/4)], padded with zero bytes."""
    m = packed.shape[-1]
    data = jnp.pad(packed, [(0, 0)] * (packed.ndim - 1) + [(0, -m % 4)])
    data = data.reshape(*packed.shape[:-1], -1, 4).astype(jnp.uint32)
    value = data[..., 0] | data[..., 1] << 8 | data[..., 2] << 16 | data[..., 3] << 24
    return value.astype(jnp.int32)


def from_words(value: Array, m: int) -> Array:
    """The first `m` bytes per row of int32 words [..., k], as uint8: the inverse of `words`."""
    data = value.astype(jnp.uint32)
    parts = jnp.stack([(data >> shift) & jnp.uint32(0xFF) for shift in (0, 8, 16, 24)], axis=-1)
    return parts.astype(jnp.uint8).reshape(*value.shape[:-1], -1)[..., :m]
