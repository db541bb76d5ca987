"""How a container names and lays out a quantized matrix: data, and the one program that writes and reads by it.

A matrix of ours is [inputs, outputs]; a file holds it as tensors of a module, [outputs, inputs] unless said. Integer
codes are written here as u = 0..2^bits-1 with a zero z, the value being s(u - z): a symmetric code q is u - 2^(bits-1).
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from jax import Array

from qjax.blocks import grid_shape
from qjax.formats import FULL
from qjax.formats.elements import E4M3, Element
from qjax.formats.integer import Int
from qjax.formats.packing import from_words, pack, unpack, words
from qjax.io import inputs
from qjax.io.exact import exactly, narrowest, reciprocal
from qjax.operators import Columns, Pre, Quantize
from qjax.qarray import Meta, QArray

Part = Literal["codes", "scale", "zero", "tensor_scale", "shape", "groups"]
"""Of a matrix: its codes; scale and zero of each block; the one scale above those; [outputs, inputs]; the group of each
input."""
Strategy = Literal["channel", "group", "block", "tensor"]
Block = tuple[int, int]


class Tensor(NamedTuple):
    """One tensor of a module.

    name       : what follows the module's name.
    part       : what it holds.
    dtype      : of the file; "" that of the model. Values that it cannot hold exactly are refused.
    packed     : axis of [outputs, inputs] along which codes lie densely in words of `dtype`, the first lowest.
    order      : of the codes of one word, where they are not in their own.
    shift      : what the file's integer is less than ours; "half" is 2^(bits-1), which makes it signed.
    reciprocal : the file divides by it.
    affine     : the file has it only where zeros are not all 2^(bits-1).
    """

    name: str
    part: Part
    dtype: str = ""
    packed: int | None = None
    order: tuple[int, ...] = ()
    shift: int | Literal["half"] = 0
    reciprocal: bool = False
    affine: bool = False


class Layout(NamedTuple):
    """The tensors of a matrix, and which matrices they can hold.

    element      : "int", or the name of a minifloat; `bits` are those that integers may have.
    scale        : dtypes of scales; "float8_e4m3fn" stands for those under one float32 of the whole matrix.
    strategies   : which blocks; `group` is the one size of a group where only one exists.
    inputs_first : the file's tensors are [inputs, outputs].
    whole        : codes fill their words.
    """

    name: str
    tensors: tuple[Tensor, ...]
    element: str
    scale: tuple[str, ...]
    strategies: tuple[Strategy, ...]
    bits: tuple[int, ...] = ()
    group: int | None = None
    inputs_first: bool = False
    whole: bool = False

    @property
    def parts(self) -> set[Part]:
        return {tensor.part for tensor in self.tensors}


class Leaf(NamedTuple):
    """A quantized matrix, the order of its inputs (None as they are), how its input is rounded (None if it is not)."""

    q: QArray
    order: np.ndarray | None = None
    rounding: Quantize | None = None


class Scheme(NamedTuple):
    """What a container's settings say of a module: everything but the tensors."""

    layout: Layout
    element: Element
    block: Block
    symmetric: bool = True
    inputs: inputs.Inputs | None = None

    def read(self, module: str, tensors: Mapping[str, np.ndarray], shape: Block) -> Any:
        """The leaf [inputs, outputs] that a module's tensors hold; see `read`."""
        return read(module, tensors, self, shape)


def strategy(block: tuple[int, ...]) -> Strategy | None:
    """What the field calls blocks of [inputs, outputs]; None where it has no word.

    >>> strategy((64, 1)), strategy((FULL, 1)), strategy((FULL, FULL)), strategy((128, 128))
    ('group', 'channel', 'tensor', 'block')
    """
    if block == (FULL, 1):
        return "channel"
    if block == (FULL, FULL):
        return "tensor"
    return None if FULL in block else "group" if block[1] == 1 else "block"


def as_leaf(path: str, node: Any, stacked: bool = False) -> Leaf:
    """The parts of a parameter that containers know: a matrix, act-order around it, rounding of the input before it.

    With `stacked` the matrix may have a batch axis in front, of experts.

    Raises:
        ValueError: another operator, or a matrix with batch axes, padding or a table; names the path and the remedy.
    """
    rounding, order, inner = None, None, node
    if isinstance(inner, Pre) and isinstance(inner.T, Quantize):
        rounding, inner = inner.T, inner.op
    if isinstance(inner, Columns) and len(inner.ops) == 1:
        order = None if inner.order is None else np.asarray(inner.order)
        inner = inner.ops[0]
    if not isinstance(inner, QArray):
        what = type(inner).__name__ + (f"({type(inner.T).__name__})" if isinstance(inner, Pre) else "")
        raise ValueError(
            f"{path}: {what} is applied while the model runs, which no container of weights holds; fold what folds "
            "(qjax.fold), export a float (qjax.dense), or leave that method out"
        )
    if len(inner.meta.block) != 2 or len(inner.batch_shape) > stacked:
        raise ValueError(f"{path}: a module holds one matrix, this has shape {inner.shape}; unstack it")
    if any(inner.meta.padding):
        raise ValueError(
            f"{path}: its blocks of {inner.meta.block} do not divide {inner.shape} and are padded, which no container "
            "holds; quantize in blocks that divide it"
        )
    if inner.table is not None or len(inner.scales) != 1:
        raise ValueError(
            f"{path}: {inner.meta.element.name} with a table or {len(inner.scales)} factors as scale has no layout; "
            "quantize with one scale a block"
        )
    return Leaf(inner, order, rounding)


def fits(leaf: Leaf, layout: Layout) -> bool:
    """Whether a layout holds what `leaf` is: its element, blocks, offset, scales and order."""
    q = leaf.q
    integer, kind = isinstance(q.meta.element, Int), strategy(q.meta.block)
    if layout.element != ("int" if integer else q.meta.element.name) or kind not in layout.strategies:
        return False
    if integer and q.meta.element.bits not in layout.bits:
        return False
    if layout.group not in (None, q.meta.block[0]) or q.meta.offset not in (None, "zero_point"):
        return False
    return _scale_dtype(q.scales[0]) in layout.scale and (leaf.order is None or "groups" in layout.parts)


def write(path: str, leaf: Leaf, layout: Layout, dtype: str) -> dict[str, np.ndarray]:
    """The tensors of a leaf that `fits`, by their names after the module's; scales with no dtype of theirs in `dtype`.

    Raises:
        ValueError: codes that do not fill their words, or numbers that the file's dtype cannot hold; names the path.
    """
    q, out = leaf.q, {}
    parts = _taken_apart(leaf)
    for tensor in layout.tensors:
        if tensor.affine and not _is_affine(q):
            continue
        a = parts[tensor.part]
        if tensor.part in ("codes", "zero") and isinstance(q.meta.element, Int):
            a = a - (2 ** (q.meta.element.bits - 1) if tensor.shift == "half" else tensor.shift)
            if tensor.shift == 1 and np.any(a < 0):
                raise ValueError(
                    f"{path}: {layout.name} stores zero - 1 and has no zero point 0; choose a layout that stores it "
                    'as it is (layout="gptq_v2", or to="awq")'
                )
        if tensor.reciprocal:
            a = reciprocal(f"{path} as {tensor.name}", a)
        if tensor.part == "scale":
            tensor = tensor._replace(dtype=tensor.dtype or dtype)
            a = a.reshape(1) if strategy(q.meta.block) == "tensor" else a
        out[tensor.name] = _laid_out(f"{path} as {tensor.name}", a, tensor, layout, q.meta.element.bits)
    return out | inputs.write(path, leaf.rounding, dtype)


def read(module: str, tensors: Mapping[str, np.ndarray], scheme: Scheme, shape: Block) -> Any:
    """The leaf [inputs, outputs] that a module's tensors hold; the inverse of `write`.

    Float scales get the narrowest of bfloat16, float16 and float32 that holds them all exactly: files have them in the
    model's dtype, whatever they were rounded to.

    Raises:
        ValueError: a tensor that is missing, unknown, of another shape or dtype, or that contradicts the settings.
    """
    layout, bits, parts = scheme.layout, scheme.element.bits, {}
    for size, block in zip(shape, scheme.block, strict=True):
        if block != FULL and size % block:
            raise ValueError(f"{module}: blocks of {scheme.block} [inputs, outputs] do not divide the matrix {shape}")
    wanted = {tensor.name: tensor for tensor in layout.tensors if not (tensor.affine and scheme.symmetric)}
    if missing := sorted(set(wanted) - set(tensors)):
        raise ValueError(f"{module} lacks {', '.join(missing)}, which {layout.name} has; it has {', '.join(tensors)}")
    known = set(wanted) | ({scheme.inputs.tensor} - {None} if scheme.inputs is not None else set())
    for tensor in layout.tensors:  # old writers keep the zeros of symmetric matrices, as zeros
        if tensor.affine and scheme.symmetric and not np.any(tensors.get(tensor.name, 0)):
            known.add(tensor.name)
    if extra := sorted(set(tensors) - known):
        raise ValueError(f"{module} has {', '.join(extra)}, of which its settings as {layout.name} say nothing")
    for tensor in wanted.values():
        a = _taken_up(f"{module}.{tensor.name}", tensors[tensor.name], tensor, scheme, shape)
        if tensor.part in ("codes", "zero") and isinstance(scheme.element, Int):
            a = a.astype(np.int16) + (2 ** (bits - 1) if tensor.shift == "half" else tensor.shift)
            if a.min() < 0 or a.max() >= 2**bits:
                raise ValueError(f"{module}.{tensor.name} holds {int(a.max())}, which is no code of {bits} bits")
        parts[tensor.part] = reciprocal(f"{module}.{tensor.name}", a) if tensor.reciprocal else a
    if "shape" in parts and parts["shape"].tolist() != [shape[1], shape[0]]:
        raise ValueError(f"{module}.weight_shape is {parts['shape'].tolist()}, the model needs {[shape[1], shape[0]]}")
    order = None
    if "groups" in parts:
        order, parts["codes"] = _sorted(module, parts["groups"], parts["codes"], scheme.block[0])
    q = _assembled(module, parts, scheme, shape)
    node: Any = q if order is None else Columns((q,), jnp.asarray(order, jnp.int32))
    return node if scheme.inputs is None else Pre(inputs.read(module, scheme.inputs, tensors), node)


def _is_affine(q: QArray) -> bool:
    e = q.meta.element
    return q.meta.offset is not None or (isinstance(e, Int) and e.min == 0)


def _scale_dtype(scale: Array | QArray) -> str:
    """The dtype of scales, where they are quantized that of their codes, if those are E4M3 under one float32."""
    if not isinstance(scale, QArray):
        return scale.dtype.name
    inner, plain = scale.scales, scale.offset is None and scale.table is None and scale.meta.element == E4M3
    if not plain or len(inner) != 1 or isinstance(inner[0], QArray):
        return "quantized"
    return "float8_e4m3fn" if inner[0].size == 1 and inner[0].dtype == jnp.float32 else "quantized"


def _taken_apart(leaf: Leaf) -> dict[str, np.ndarray]:
    """The parts as numpy arrays, matrices [outputs, inputs]; integers from zero."""
    q, (inputs, outputs) = leaf.q, leaf.q.shape
    codes, scale = np.asarray(q.codes), q.scales[0]
    along = inputs if q.meta.block[0] == FULL else q.meta.block[0]
    parts: dict[str, np.ndarray] = {"shape": np.array([outputs, inputs]), "tensor_scale": np.ones(1, np.float32)}
    groups = np.arange(inputs) // along
    if leaf.order is not None:
        codes = _scattered(codes, leaf.order)
        groups = _scattered(groups, leaf.order)
    if isinstance(scale, QArray):
        parts["tensor_scale"] = np.asarray(scale.scales[0], np.float32).reshape(1)
        scale = np.asarray(scale.codes).view(ml_dtypes.float8_e4m3fn)
    grid = grid_shape((inputs, outputs), q.meta.block)
    scale = np.broadcast_to(np.asarray(scale), grid).T
    if isinstance(q.meta.element, Int):
        middle = 0 if q.meta.element.min == 0 else 2 ** (q.meta.element.bits - 1)
        zero = np.full(grid, middle) if q.offset is None else np.broadcast_to(np.asarray(q.offset), grid)
        codes, parts["zero"] = codes.astype(np.int16) + middle, zero.T.astype(np.int16)
    return {**parts, "codes": codes.T, "scale": scale, "groups": groups}


def _scattered(a: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Entry i of `a` at place order[i]."""
    out = np.empty_like(a)
    out[order] = a
    return out


def _laid_out(what: str, a: np.ndarray, tensor: Tensor, layout: Layout, bits: int) -> np.ndarray:
    """A part as the file holds it."""
    matrix = a.ndim == 2
    if tensor.packed is not None:
        a = np.moveaxis(a, tensor.packed, -1)
        if layout.whole and a.shape[-1] * bits % 32:
            raise ValueError(
                f"{what}: {a.shape[-1]} codes of {bits} bits do not fill words of 32 bits, as {layout.name} wants; "
                'to="compressed-tensors" has no such condition'
            )
        if tensor.order:
            a = a.reshape(*a.shape[:-1], -1, len(tensor.order))[..., list(tensor.order)].reshape(a.shape)
        a = np.moveaxis(np.asarray(_packed(a, bits, tensor.dtype == "int32")), -1, tensor.packed)
    stored = exactly(what, a, tensor.dtype)
    return np.ascontiguousarray(stored.T if matrix and layout.inputs_first else stored)


@functools.partial(jax.jit, static_argnames=("bits", "wide"))
def _packed(codes: np.ndarray, bits: int, wide: bool) -> Array:
    data = pack(jnp.asarray(codes), bits)
    return words(data) if wide else data


@functools.partial(jax.jit, static_argnames=("bits", "n"))
def _unpacked(data: np.ndarray, bits: int, n: int) -> Array:
    size = -(-n * bits // 8)
    stored = jnp.asarray(data)
    return unpack(from_words(stored, size) if stored.dtype == jnp.int32 else stored[..., :size], bits, n)


def _taken_up(what: str, a: np.ndarray, tensor: Tensor, scheme: Scheme, shape: Block) -> np.ndarray:
    """A part in [outputs, inputs] from what the file holds, checked against the shape it must have."""
    inputs, outputs = shape
    rows, groups = reversed(grid_shape(shape, scheme.block))
    sizes: dict[str, tuple[int, ...]] = {
        "codes": (outputs, inputs),
        "scale": (rows, groups),
        "zero": (rows, groups),
        "tensor_scale": (1,),
        "shape": (2,),
        "groups": (inputs,),
    }
    size, bits = sizes[tensor.part], scheme.element.bits
    another = tensor.part == "scale" and a.dtype.name in scheme.layout.scale
    if tensor.dtype and a.dtype.name != tensor.dtype and not another:
        raise ValueError(f"{what} is {a.dtype.name}, {scheme.layout.name} has {tensor.dtype}")
    if tensor.part == "scale" and not tensor.dtype and a.dtype.name not in scheme.layout.scale:
        raise ValueError(f"{what} is {a.dtype.name}, {scheme.layout.name} has {' or '.join(scheme.layout.scale)}")
    if scheme.layout.inputs_first and len(size) == 2:
        a = a.T if a.ndim == 2 else a
    if tensor.part in ("scale", "zero", "tensor_scale") and a.size == 1 == int(np.prod(size)):
        a = a.reshape(size)
    if tensor.packed is None:
        if a.shape != size:
            raise ValueError(f"{what} has shape {a.shape}, the model needs {size} for blocks of {scheme.block}")
        return a
    n = size[tensor.packed]
    unit = 8 * a.dtype.itemsize
    expected = list(size)
    expected[tensor.packed] = -(-n * bits // unit)
    padded = list(size)
    padded[tensor.packed] = -(-n // (unit // bits))
    if a.shape != tuple(expected) and (scheme.layout.whole or a.shape != tuple(padded)):
        raise ValueError(f"{what} has shape {a.shape}, {size} codes of {bits} bits need {tuple(expected)}")
    a = np.moveaxis(a, tensor.packed, -1)
    if a.shape[-1] == expected[tensor.packed]:
        codes = np.asarray(_unpacked(np.ascontiguousarray(a), bits, n))
    else:  # compressed-tensors before 0.18 let no code of 3, 5, 6 or 7 bits cross into the next word
        shifts = bits * np.arange(unit // bits)
        codes = (a[..., None].astype(np.int64) >> shifts & (2**bits - 1)).reshape(*a.shape[:-1], -1)[..., :n]
    if tensor.order:
        undone = np.argsort(tensor.order)
        codes = codes.reshape(*codes.shape[:-1], -1, len(undone))[..., undone].reshape(codes.shape)
    return np.moveaxis(codes, -1, tensor.packed)


def _sorted(module: str, groups: np.ndarray, codes: np.ndarray, size: int) -> tuple[np.ndarray | None, np.ndarray]:
    """The inputs in the order of their groups (None if they are), and the codes [outputs, inputs] in it."""
    size = len(groups) if size == FULL else size
    wanted = np.arange(len(groups)) // size
    if np.array_equal(groups, wanted):
        return None, codes
    order = np.argsort(groups, kind="stable")
    if not np.array_equal(groups[order], wanted):
        raise ValueError(f"{module}.g_idx does not put {size} inputs in each of its groups, so they are no blocks")
    return order, codes[:, order]


def _assembled(module: str, parts: Mapping[str, np.ndarray], scheme: Scheme, shape: Block) -> QArray:
    """The quantized array [inputs, outputs] of parts [outputs, inputs]."""
    e, offset = scheme.element, None
    codes, values = parts["codes"].T, np.ascontiguousarray(parts["scale"].T)
    values = values.view(ml_dtypes.float8_e8m0fnu) if values.dtype == np.uint8 else narrowest(values)
    above = parts.get("tensor_scale", np.ones(1, np.float32))
    if not np.all(np.isfinite(values.astype(np.float32))) or not np.all(np.isfinite(above)):
        raise ValueError(f"{module}: a scale is not finite")
    scale: Array | QArray = jnp.asarray(values)
    if isinstance(e, Int):
        half = 2 ** (e.bits - 1)
        zero = parts.get("zero", np.full((1, 1), half)).T
        if np.all(zero == half):  # symmetric, whatever the settings say
            codes = codes.astype(np.int16) - half
        else:
            e, offset = Int(e.bits, signed=False), jnp.asarray(np.ascontiguousarray(zero), jnp.uint8)
    elif codes.dtype.itemsize == 1:
        codes = codes.view(np.uint8)
    if "tensor_scale" in parts:
        meta = Meta(E4M3, (FULL, FULL))
        tensor = jnp.asarray(above.reshape(1, 1))
        scale = QArray(jnp.asarray(values.view(np.uint8)), (tensor,), None, None, meta)
    meta = Meta(e, scheme.block, "zero_point" if offset is not None else None)
    return QArray(jnp.asarray(np.ascontiguousarray(codes), e.code_dtype), (scale,), offset, None, meta)
