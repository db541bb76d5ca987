"""GGUF: a model in one file for llama.cpp, its matrices in ggml's block types (catalogue U1, U2, U4).

Names, metadata, fused tensors and the order of the rows of q and k as llama.cpp's converter writes them, for the
architectures in `qjax.models.gguf_families`. `qjax.models.load` reads the file, with quantized=True block by block.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from gguf import GGMLQuantizationType, GGUFWriter
from jax import Array

from qjax import ggml
from qjax.dispatch import is_operator
from qjax.formats.integer import Int
from qjax.io.exact import exactly
from qjax.io.layout import as_leaf
from qjax.models.architecture import Architecture
from qjax.models.gguf_families import KINDS, Kind, family_of, metadata_of, name_of, neighbours, outer_scale, paths_of
from qjax.models.tokenizer import Tokenizer, write_gguf
from qjax.qarray import QArray

BLOCK, ALIKE = 32, {(4, True, None), (5, True, None), (8, True, None), (4, False, "minimum"), (5, False, "minimum")}
"""Bits, sign and offset of the types that formats of ours, with scales in bfloat16 or float32, have equals among."""

ADD: Mapping[type, Callable[..., None]] = {
    int: GGUFWriter.add_uint32,
    float: GGUFWriter.add_float32,
    str: GGUFWriter.add_string,
}


class Rows(NamedTuple):
    """What a tensor holds: rows of outputs, numbers or bytes, and their type.

    scale : above those of NVFP4's blocks, float32 [1] or one an expert; None where it is 1.
    """

    data: np.ndarray
    type: GGMLQuantizationType
    scale: np.ndarray | None = None


def write(file: Path, arch: Architecture, leaves: Mapping[str, Any], tokenizer: Tokenizer | None) -> None:
    """The file of a model's parameters by path, arrays or quantized.

    Raises:
        ValueError: an architecture that is not among them; a parameter for which there is no block type; parts of one
            tensor in several types; each named, with the remedy.
    """
    family = family_of(arch)
    if family == "phi3" and any(0 < window < arch.context for window in arch.windows):
        warnings.warn(
            f"windows of {arch.windows} tokens are in the file, and llama.cpp attends to all tokens in phi3 models "
            "(ggml-org/llama.cpp#13676): longer texts get other logits there",
            stacklevel=3,
        )
    kind, (metadata, divisors) = KINDS[family], metadata_of(family, arch)
    writer = GGUFWriter(str(file), family)
    for key, value in metadata.items():
        ADD[type(value)](writer, f"{family}.{key}", value)
    writer.add_quantization_version(2)
    if tokenizer is None:
        writer.add_tokenizer_model("none")
    else:
        write_gguf(tokenizer, writer, arch.vocab)
    for name, values in divisors.items():
        writer.add_tensor(name, np.asarray(values, np.float32))
    for name in dict.fromkeys(name_of(kind, path) for path in leaves):
        assert name is not None  # the parameters are those of the architecture, which is one of this family
        parts = {path: _rows(arch, kind, path, leaves[path]) for path in paths_of(kind, name) or ()}
        whole = _side_by_side(name, parts)
        writer.add_tensor(name, whole.data, raw_dtype=whole.type)
        if whole.scale is not None:
            writer.add_tensor(f"{name.removesuffix('.weight')}.scale", whole.scale)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _rows(arch: Architecture, kind: Kind, path: str, node: Any) -> Rows:
    """A parameter's rows in the order of the file."""
    rows = blocks(path, node) if is_operator(node) else _floats(path, node)
    if rows.scale is not None and outer_scale(kind, path) is None:
        raise ValueError(f"{path}: llama.cpp has no place for nvfp4's tensor scale there; use mxfp4 or q4_0")
    # llama.cpp's RoPE turns neighbours, ours i and i + n.
    if kind.neighbours and path.rpartition("/")[2].removesuffix("_bias") in ("q", "k"):
        data, theirs = rows.data, np.argsort(neighbours(arch))
        data = data.reshape(-1, arch.head_dim, *data.shape[1:])[:, theirs].reshape(data.shape)
        return rows._replace(data=data)
    return rows


def _side_by_side(name: str, parts: Mapping[str, Rows]) -> Rows:
    """One tensor of several parameters' rows, which have to be of one type, under one scale."""
    first = next(iter(parts.values()))
    if any(part.type != first.type for part in parts.values()):
        what = ", ".join(f"{path} in {part.type.name}" for path, part in parts.items())
        raise ValueError(f"{what}: they are one tensor of a GGUF file, {name}; quantize them to one type")
    if len({None if part.scale is None else part.scale.tobytes() for part in parts.values()}) > 1:
        raise ValueError(
            f"{', '.join(parts)} have tensor scales of their own, but are one tensor of a GGUF file, {name}; quantize "
            "them under one scale, or to mxfp4 or q4_0"
        )
    rows = [part.data for part in parts.values()]
    whole = rows[0] if len(rows) == 1 else np.concatenate(rows, axis=0 if rows[0].ndim == 1 else -2)
    return first._replace(data=np.ascontiguousarray(whole))


def blocks(path: str, node: Any) -> Rows:
    """A quantized matrix, or stack of experts', as rows of bytes, one an output, and the type of its blocks.

    A format of ours counts as the type that has its codes and blocks if float16 holds its scales and minima exactly.

    Raises:
        ValueError: no type holds it; names the path and the types.
    """
    if path.endswith("/shared_gate"):
        raise ValueError(f"{path}: llama.cpp keeps this vector in float32; leave it float (qjax.dense)")
    leaf = as_leaf(path, node, stacked=True)
    if leaf.order is not None or leaf.rounding is not None:
        raise ValueError(f"{path}: GGUF keeps neither reordered inputs nor their rounding; quantize the weight alone")
    q = leaf.q
    try:
        kind = ggml.type_of(q)
    except ValueError as error:
        q = _in_halves(path, q)
        if q is leaf.q:
            raise ValueError(f"{path}: {error}; quantize to one of them") from error
        kind = ggml.type_of(q)
    if q.meta.block[-1 if path == "embed" else -2] == 1:
        raise ValueError(
            f"{path}: its blocks lie along the outputs, those of ggml along the inputs; quantize that axis"
        )
    outer = q.scales[0].scales[0] if kind.name == "nvfp4" and isinstance(q.scales[0], QArray) else None
    scale = None if outer is None or np.all(np.asarray(outer) == 1) else np.asarray(outer, np.float32).reshape(-1)
    return Rows(np.asarray(ggml.to_bytes(q, kind)), GGMLQuantizationType[kind.name.upper()], scale)


def _in_halves(path: str, q: QArray) -> QArray:
    """The same values as in ggml's types of 32: full-range codes under float16; `q` itself if it is not alike."""
    scale, e = q.scales[0], q.meta.element
    alike = (e.bits, e.min < 0, q.meta.offset) in ALIKE and isinstance(e, Int) and sorted(q.meta.block) == [1, BLOCK]
    if not alike or not isinstance(scale, Array) or scale.dtype.name not in ("float32", "bfloat16", "float16"):
        return q

    def half(part: Any) -> Array:
        return jnp.asarray(exactly(f"{path} in a GGUF block", np.asarray(part), "float16"))

    offset = None if q.offset is None else half(q.offset)
    return QArray(q.codes, (half(scale),), offset, None, replace(q.meta, element=Int(e.bits, signed=e.min < 0)))


def _floats(path: str, w: Any) -> Rows:
    """Rows [outputs, inputs] in the dtype they have; vectors in float32, as llama.cpp wants them."""
    array = np.asarray(w)
    if array.dtype.name not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"{path} is {array.dtype.name}; parameters are float32, float16, bfloat16 or quantized")
    if array.ndim == 1 or path.endswith("/shared_gate"):
        return Rows(array.astype(np.float32).reshape(-1), GGMLQuantizationType.F32)
    array = np.ascontiguousarray(array if path == "embed" else np.swapaxes(array, -1, -2))
    if array.dtype.name == "bfloat16":  # numpy has no such type: its bytes
        return Rows(array.view(np.uint8), GGMLQuantizationType.BF16)
    return Rows(array, GGMLQuantizationType.F32 if array.dtype.itemsize == 4 else GGMLQuantizationType.F16)
