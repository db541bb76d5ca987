"""The bytes of ggml blocks and the parts they hold, both ways, without a float in between (catalogue U4).

Arrays are [blocks of a row, bytes or values of a block, rows...]: the last axes are long, so that every step is one
vector operation over all rows.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from qjax.formats.ggml.types import Bits, Field, Half, Part, Sixes, Trits, Type

Parts = dict[Part, Array]
"""Part of a block to its stored values [blocks, values, rows...]: float16 where the file holds halves, else uint8."""

_RUNS = (32, 5), (16, 5), (4, 4)
"""Of ternary codes: bytes in a row, and digits that each holds."""


def unpack(data: Array, kind: Type) -> Parts:
    """The parts of blocks of `kind` from their bytes, uint8 [blocks, nbytes, rows...].

    >>> from qjax.formats.ggml.types import TYPES
    >>> unpack(jnp.arange(18, dtype=jnp.uint8)[None], TYPES["q4_0"])["codes"][0, :3].tolist()
    [2, 3, 4]
    """
    parts: Parts = {}
    start = 0
    for field in kind.fields:
        size = _size(field, kind)
        for part, values in _read(data[:, start : start + size], field, kind).items():
            parts[part] = parts[part] | values if part in parts else values
        start += size
    return parts


def pack(parts: Parts, kind: Type) -> Array:
    """The inverse of `unpack`: uint8 [blocks, nbytes, rows...]."""
    return jnp.concatenate([_write(parts, field) for field in kind.fields], axis=1)


def _size(field: Field, kind: Type) -> int:
    if isinstance(field, Bits):
        return sum(kind.sizes[part] for part in field.parts) * field.bits // 8
    return 2 if isinstance(field, Half) else 12 if isinstance(field, Sixes) else sum(run for run, _ in _RUNS)


def _read(data: Array, field: Field, kind: Type) -> Parts:
    blocks, _, *rows = data.shape
    if isinstance(field, Half):
        low, high = (data[:, i : i + 1].astype(jnp.uint16) for i in (0, 1))
        return {field.part: lax.bitcast_convert_type(low | (high << 8), jnp.float16)}
    if isinstance(field, Sixes):
        first, last = (data[:, 0:4], data[:, 4:8]), data[:, 8:]
        scales, minima = (
            jnp.concatenate([six & 0x3F, four | (six >> 6 << 4)], axis=1)
            for six, four in zip(first, (last & 0xF, last >> 4), strict=True)
        )
        return {"scales": scales, "minima": minima}
    if isinstance(field, Trits):
        return {"codes": _from_trits(data)}
    per, mask = 8 // field.bits, jnp.uint8(2**field.bits - 1)
    data = data.reshape(blocks, -1, field.run, *rows)
    values = jnp.stack([(data >> (field.bits * i)) & mask for i in range(per)], axis=2) << field.low
    values = values.reshape(blocks, -1, *rows)
    read: Parts = {}
    for part in field.parts:
        read[part], values = values[:, : kind.sizes[part]], values[:, kind.sizes[part] :]
    return read


def _write(parts: Parts, field: Field) -> Array:
    if isinstance(field, Half):
        bits = lax.bitcast_convert_type(parts[field.part], jnp.uint16)
        return jnp.concatenate([bits & 0xFF, bits >> 8], axis=1).astype(jnp.uint8)
    if isinstance(field, Sixes):
        scales, minima = parts["scales"], parts["minima"]
        first = [half[:, :4] | (half[:, 4:] >> 4 << 6) for half in (scales, minima)]
        return jnp.concatenate([*first, (scales[:, 4:] & 0xF) | (minima[:, 4:] << 4)], axis=1)
    if isinstance(field, Trits):
        return _to_trits(parts["codes"])
    values = jnp.concatenate([parts[part] for part in field.parts], axis=1)
    blocks, _, *rows = values.shape
    values = (values >> field.low) & jnp.uint8(2**field.bits - 1)
    values = values.reshape(blocks, -1, 8 // field.bits, field.run, *rows)
    data = values[:, :, 0]
    for i in range(1, 8 // field.bits):
        data = data | (values[:, :, i] << (field.bits * i))
    return data.reshape(blocks, -1, *rows)


def _to_trits(codes: Array) -> Array:
    blocks, _, *rows = codes.shape
    data, start = [], 0
    for run, digits in _RUNS:
        values = codes[:, start : start + run * digits].reshape(blocks, digits, run, *rows).astype(jnp.uint16)
        number = jnp.zeros_like(values[:, 0])
        for i in range(5):
            number = 3 * number + (values[:, i] if i < digits else 0)
        data.append(((256 * number + 242) // 243).astype(jnp.uint8))
        start += run * digits
    return jnp.concatenate(data, axis=1)


def _from_trits(data: Array) -> Array:
    codes, start = [], 0
    for run, digits in _RUNS:
        for i in range(digits):
            # Times 3^i modulo 256 the i-th digit is the leading one; times 3 it is what carries out of the byte.
            leading = (data[:, start : start + run] * jnp.uint8(3**i)).astype(jnp.uint16)
            codes.append((leading * 3 >> 8).astype(jnp.uint8))
        start += run
    return jnp.concatenate(codes, axis=1)
