"""Quantized arrays as Qwix holds them, and back: the same codes, scales and zero points under other names.

Qwix's QArray has values of a narrow type, a scale for each tile and a zero point in units of the values: (qvalue -
zero_point) scale. `qwix.QArray(**to_qwix(q)._asdict())` makes one; Qwix itself is not needed here.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qjax.formats import FULL
from qjax.formats.elements import E2M1, E4M3, E5M2, Element
from qjax.formats.integer import Int
from qjax.io.exact import exactly
from qjax.qarray import Meta, QArray

FLOATS: dict[Element, str] = {E4M3: "float8_e4m3fn", E5M2: "float8_e5m2", E2M1: "float4_e2m1fn"}
BITS = (2, 4, 8)


class Fields(NamedTuple):
    """The fields of Qwix's QArray; `qtype` is the dtype of `qvalue`."""

    qvalue: jax.Array
    scale: jax.Array
    zero_point: jax.Array | None
    qtype: np.dtype


def to_qwix(q: QArray) -> Fields:
    """The fields of a Qwix array with the same codes; its scale has q's logical dtype, which is what Qwix returns.

    Raises:
        ValueError: what Qwix has no word for (a table, nested scales, a minimum, padding, other widths), or a scale or
            a zero point that its types do not hold exactly.

    >>> from qjax.quantization import quantize
    >>> to_qwix(quantize(jnp.array([[7.0], [-3.5]]), "int4_g2")).qvalue.astype(int).tolist()
    [[7], [-4]]
    """
    element = q.meta.element
    name = FLOATS.get(element)
    if isinstance(element, Int) and element.bits in BITS:
        name = f"int{element.bits}"
    scales = [scale for scale in q.scales if isinstance(scale, jax.Array)]
    plain = q.table is None and not any(q.meta.padding) and len(scales) == len(q.scales) == 1
    if name is None or not plain or q.meta.offset not in (None, "zero_point"):
        raise ValueError(
            f"Qwix holds integers of 2, 4 or 8 bits, E4M3, E5M2 and E2M1 under one scale a whole block: not "
            f"{element.name} with {len(q.scales)} scales, offset {q.meta.offset}, padding {q.meta.padding}"
        )
    kind = np.dtype(jnp.dtype(name))
    scale = jnp.asarray(exactly("scale", np.asarray(scales[0]), q.meta.dtype))
    if not isinstance(element, Int):
        return Fields(element.decode(q.codes).astype(kind), scale, None, kind)
    half = 0 if element.signed else 2 ** (element.bits - 1)
    zero = None
    if isinstance(q.offset, jax.Array):
        zero = jnp.asarray(exactly("zero point", np.asarray(q.offset, np.float32) - half, kind.name))
    elif half:
        zero = jnp.full(scale.shape, -half, jnp.int32).astype(kind)
    return Fields((q.codes.astype(jnp.int32) - half).astype(kind), scale, zero, kind)


def from_qwix(array: Any) -> QArray:
    """The array with the same codes, from a Qwix QArray or anything with its fields; the last two axes are the core.

    Raises:
        ValueError: a type or a shape of scales that has no counterpart here.
    """
    kind = jnp.dtype(array.qvalue.dtype if array.qtype is None else array.qtype)
    shape, scale = array.qvalue.shape, jnp.asarray(array.scale)
    core = min(2, len(shape))
    if scale.ndim != len(shape) or any(n % m for n, m in zip(shape, scale.shape, strict=False)):
        raise ValueError(f"scales {scale.shape} do not tile values {shape}")
    if any(m not in (1, n) for n, m in zip(shape[:-core], scale.shape[:-core], strict=True)):
        raise ValueError(f"scales {scale.shape} cut the batch axes of values {shape}; only the last two may have tiles")
    block = tuple(FULL if m == 1 and n > 1 else n // m for n, m in zip(shape[-core:], scale.shape[-core:], strict=True))
    floats = {name: element for element, name in FLOATS.items()}
    logical = scale.dtype.name
    if kind.name in floats:
        element = floats[kind.name]
        codes = element.encode(jnp.asarray(array.qvalue).astype(jnp.float32))
        return QArray(codes, (scale,), None, None, Meta(element, block, dtype=logical))
    if kind.name not in [f"int{bits}" for bits in BITS]:
        raise ValueError(f"values of {kind.name} have no element here; known: int2, int4, int8, {', '.join(floats)}")
    bits, zero = int(kind.name[3:]), array.zero_point
    values = jnp.asarray(array.qvalue).astype(jnp.int32)
    if zero is None:
        return QArray(values.astype(jnp.int8), (scale,), None, None, Meta(Int(bits), block, dtype=logical))
    half = 2 ** (bits - 1)
    offset = (jnp.asarray(zero).astype(jnp.int32) + half).astype(jnp.uint8)
    meta = Meta(Int(bits, signed=False), block, "zero_point", dtype=logical)
    return QArray((values + half).astype(jnp.uint8), (scale,), jnp.broadcast_to(offset, scale.shape), None, meta)
