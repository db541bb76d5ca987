"""Quantized arrays in the block types of ggml: from numbers, and from and to the bytes of a GGUF file.

`qjax.quantize(w, "q4_k")` makes one, with the scales and codes that ggml itself chooses; its `weights` are what
llama.cpp calls an importance matrix, the mean square of each input: [K, 1] for a kernel [K, N]. Q8_0, ternary and FP4
types ignore them, as in ggml. These types have not float32's range: what lies beyond the largest scale and code
saturates, infinities too, and blocks below half the least float16 scale become zero. A NaN makes its block NaN.

A GGUF file stores a weight as rows of bytes, one for each output, whose blocks lie along the inputs; our kernels are
[K, N], inputs first. `axis` says where the blocks lie in the quantized array: -2 for [K, N], -1 for the file's order.
Nothing here permutes rows: that llama.cpp does so to some models' queries and keys is their loader's to undo.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array, lax

from qjax.formats.format import Format
from qjax.formats.ggml import TYPES, Type, bias, fallback
from qjax.formats.ggml.encoding import encode
from qjax.formats.ggml.layout import Parts, pack, unpack
from qjax.formats.spelling import as_format
from qjax.qarray import Meta, QArray

__all__ = ["TYPES", "Type", "fallback", "from_bytes", "quantize_blocks", "to_bytes", "type_of"]


def quantize_blocks(w: Array, kind: Type, axis: int, batch_axes: int = 0, weights: Array | None = None) -> QArray:
    """`w` [batch..., core...] with the scales and codes that ggml's own encoder chooses; `axis` is negative.

    What `qjax.quantize` does for a block type; `weights` broadcast against `w`.

    Raises:
        ValueError: the axis is no whole number of blocks long; names llama.cpp's replacement.
    """
    if w.shape[axis] % kind.block:
        other = f"; llama.cpp takes {fallback(kind.name, w.shape[axis])} instead" if kind.block == 256 else ""
        names = " and ".join(name for name, other in TYPES.items() if other.format == kind.format)
        raise ValueError(
            f"blocks of {names} are {kind.block} long, which do not divide axis {axis} of {w.shape}{other}"
        )
    if weights is not None:
        weights = weights.reshape((1,) * (w.ndim - weights.ndim) + weights.shape)
        along = [1] * w.ndim
        along[axis] = w.shape[axis]
        weights = jnp.broadcast_to(weights, jnp.broadcast_shapes(weights.shape, tuple(along)))

    def cut(a: Array) -> Array:
        a = jnp.moveaxis(a.astype(jnp.float32), axis, 0)
        return a.reshape(-1, kind.block, *a.shape[1:])

    parts = encode(cut(w), kind, None if weights is None else cut(weights))
    return _assembled(parts, kind, axis, w.ndim - batch_axes, str(w.dtype))


def from_bytes(data: Array, type: str | Type, axis: int = -2) -> QArray:
    """The blocks of a file as they are, from their bytes: uint8 [batch..., rows, bytes of a row].

    The result is [batch..., K, rows], or with axis=-1 [batch..., rows, K]; one row [bytes] gives [K] with axis=-1.

    `qjax.dequantize` of it equals `gguf.quants.dequantize` bit for bit, whatever the bytes, but for the FP4 types: code
    8 is minus zero; numbers of MXFP4 below 2^-126 are zero, for XLA has no subnormal ones; an E8M0 scale of 255 is NaN
    as its standard says (to ggml 2^128). The tensor scale of NVFP4, which GGUF keeps in a tensor of its own, is 1; its
    scales are unsigned, so a top bit is dropped, and 127, a NaN that ggml reads as zero, is zero.

    >>> from_bytes(jnp.zeros((4, 144), jnp.uint8), "q4_k").shape
    (256, 4)

    Raises:
        ValueError: an unknown type, a row that holds no whole blocks, data that are not bytes, or an axis that is not
            one of the last two.
    """
    kind = _named(type)
    if data.dtype != jnp.uint8 or data.ndim < 1 or data.shape[-1] % kind.nbytes or data.size == 0:
        raise ValueError(
            f"{kind.name} needs uint8 [..., rows, n * {kind.nbytes}], blocks of {kind.nbytes} bytes, "
            f"got {data.dtype}{list(data.shape)}"
        )
    if axis not in (-1, -2)[: data.ndim]:
        raise ValueError(f"axis={axis}: blocks of data {data.shape} can lie along {(-1, -2)[: data.ndim]}")
    return _from_bytes(data, kind=kind, axis=axis)


def to_bytes(q: QArray, type: str | Type | None = None) -> Array:
    """The bytes of a file, uint8 [batch..., rows, bytes of a row]: the inverse of `from_bytes`.

    The rows are those along which the blocks of `q` lie, be it [batch..., K, rows] or [batch..., rows, K].
    `type` is `type_of(q)` if None. A tensor scale of NVFP4 is not in the blocks: GGUF keeps it in a tensor of its own.

    >>> to_bytes(from_bytes(jnp.zeros((4, 34), jnp.uint8), "q8_0")).shape
    (4, 34)

    Raises:
        ValueError: the array has not the structure of the type; says which it has.
    """
    kind = type_of(q) if type is None else _named(type)
    axis = _block_axis(q, kind)
    if axis is None:
        raise ValueError(f"a QArray of {q.meta.element.name} in blocks of {q.meta.block} is not {kind.name}")
    return _to_bytes(q, kind=kind, axis=axis)


def type_of(of: QArray | Format | str) -> Type:
    """The type of an array's blocks, or of a format.

    However the array was made: one in this project's "mxfp4" is ggml's MXFP4. The ternary types are two
    packings of the same array; the denser, TQ1_0, is returned.

    >>> type_of(quantize_blocks(jnp.ones((32, 1)), TYPES["q8_0"], axis=-2)).name, type_of("q4_0").nbytes
    ('q8_0', 18)

    Raises:
        ValueError: ggml has no such type.
    """
    if isinstance(of, QArray):
        found = (kind for kind in TYPES.values() if _block_axis(of, kind) is not None)
        scales = ", ".join("quantized" if isinstance(s, QArray) else str(s.dtype) for s in of.scales)
        what = (
            f"of {of.meta.element.name} in blocks of {of.meta.block}, shape {of.shape}, with offset {of.meta.offset} "
            f"and scales {scales}"
        )
    else:
        fmt = as_format(of)
        found = (kind for kind in TYPES.values() if kind.format == fmt)
        what = f"that is {fmt.name}"
    first = next(found, None)
    if first is None:
        raise ValueError(f"ggml has no block type {what}; its types are {', '.join(TYPES)}")
    return first


def _named(type: str | Type) -> Type:
    if isinstance(type, Type):
        return type
    if type not in TYPES:
        raise ValueError(f"unknown ggml type {type!r}; there are {', '.join(TYPES)}")
    return TYPES[type]


@functools.partial(jax.jit, static_argnames=("kind", "axis"))
def _from_bytes(data: Array, *, kind: Type, axis: int) -> QArray:
    rows = jnp.moveaxis(data, -1, 0)
    parts = unpack(rows.reshape(-1, kind.nbytes, *rows.shape[1:]), kind)
    if kind.name == "nvfp4":
        scales = parts["scales"] & 0x7F
        parts["scales"] = jnp.where(scales == 0x7F, jnp.uint8(0), scales)
    return _assembled(parts, kind, axis, min(data.ndim, 2), "float32")


@functools.partial(jax.jit, static_argnames=("kind", "axis"))
def _to_bytes(q: QArray, *, kind: Type, axis: int) -> Array:
    data = pack(_taken_apart(q, kind, axis), kind)
    return jnp.moveaxis(data.reshape(-1, *data.shape[2:]), 0, -1)


def _assembled(parts: Parts, kind: Type, axis: int, core: int, dtype: str) -> QArray:
    """The quantized array of parts [blocks, values, other axes...], its last `core` axes its core."""
    fmt = kind.format

    def placed(values: Array) -> Array:
        return jnp.moveaxis(values.reshape(-1, *values.shape[2:]), 0, axis)

    def array(values: Array, fmt: Format, scale: Array | QArray, offset: Array | QArray | None, dtype: str) -> QArray:
        codes = values.astype(jnp.int8) - jnp.int8(bias(fmt.element)) if bias(fmt.element) else values
        block = tuple(fmt.block if a == axis else fmt.across for a in range(-core, 0))
        meta = Meta(fmt.element, block, fmt.offset, dtype=dtype)
        return QArray(placed(codes).astype(fmt.element.code_dtype), (scale,), offset, None, meta)

    scale = parts.get("scale")
    if isinstance(fmt.scale, str):
        assert scale is not None
        if scale.dtype == jnp.uint8:
            scale = lax.bitcast_convert_type(scale, jnp.dtype(fmt.scale))
        minimum = placed(parts["minimum"]) if "minimum" in parts else None
        return array(parts["codes"], fmt, placed(scale), minimum, dtype)
    if scale is None:  # NVFP4
        codes = placed(parts["codes"])
        scale = jnp.ones((*codes.shape[: codes.ndim - core], *[1] * core), jnp.float32)
    else:
        scale = placed(scale)
    assert isinstance(fmt.scale, Format)
    scales = array(parts["scales"], fmt.scale, scale, None, "float32")
    minima = None
    if "minima" in parts:
        # ggml subtracts its minima.
        minima = array(parts["minima"], fmt.scale, placed(_negative(parts["minimum"])), None, "float32")
    return array(parts["codes"], fmt, scales, minima, dtype)


def _taken_apart(q: QArray, kind: Type, axis: int) -> Parts:
    """The inverse of `_assembled`."""

    def gathered(values: Array, count: int) -> Array:
        values = jnp.moveaxis(values, axis, 0)
        return values.reshape(-1, count, *values.shape[1:])

    def codes(q: QArray, count: int) -> Array:
        shift = bias(q.meta.element)
        return gathered(q.codes.astype(jnp.int8) + jnp.int8(shift) if shift else q.codes, count).astype(jnp.uint8)

    def plain(part: Array | QArray) -> Array:
        assert isinstance(part, Array)
        return gathered(part if part.dtype == jnp.float16 else lax.bitcast_convert_type(part, jnp.uint8), 1)

    sizes = kind.sizes
    parts: Parts = {"codes": codes(q, sizes["codes"])}
    scale, offset = q.scales[0], q.offset
    if isinstance(scale, QArray):
        parts["scales"] = codes(scale, sizes["scales"])
        scale = scale.scales[0]
    if kind.name == "nvfp4":  # its tensor scale is not in the blocks
        return parts
    parts["scale"] = plain(scale)
    if isinstance(offset, QArray):
        parts["minima"] = codes(offset, sizes["minima"])
        parts["minimum"] = _negative(plain(offset.scales[0]))
    elif offset is not None:
        parts["minimum"] = plain(offset)
    return parts


def _negative(x: Array) -> Array:
    """-x in float16 by its sign bit, so that every pattern comes back."""
    return lax.bitcast_convert_type(lax.bitcast_convert_type(x, jnp.uint16) ^ jnp.uint16(0x8000), jnp.float16)


def _block_axis(q: QArray, kind: Type) -> int | None:
    """The axis along which `q` holds whole blocks of `kind`, or None if it does not."""
    for axis in range(-len(q.meta.block), 0):
        if q.codes.shape[axis] % kind.block == 0 and not any(q.meta.padding) and _is(q, kind.format, axis):
            return axis
    return None


def _is(part: Array | QArray | None, fmt: Format | str | None, axis: int) -> bool:
    """Whether a part has the structure that a format or a storage dtype describes."""
    if isinstance(fmt, str):
        return isinstance(part, Array) and part.dtype == fmt
    if not isinstance(part, QArray) or fmt is None or len(part.scales) != 1 or part.table is not None:
        return False
    block = tuple(fmt.block if a == axis else fmt.across for a in range(-len(part.meta.block), 0))
    same = (part.meta.element, part.meta.block, part.meta.offset) == (fmt.element, block, fmt.offset)
    return same and _is(part.scales[0], fmt.scale, axis) and (fmt.offset is None or _is(part.offset, fmt.scale, axis))
