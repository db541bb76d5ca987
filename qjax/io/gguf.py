"""GGUF: a Llama-family model in one file for llama.cpp, its matrices in ggml's block types (catalogue U1, U2, U4).

Names, metadata and the order of the rows of q and k as in llama.cpp's convert_hf_to_gguf.py. `qjax.models.load` reads
the file back, with quantized=True block by block.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

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
from qjax.models.gguf import GLOBAL, LAYER, ROPE_FACTORS
from qjax.models.tokenizer import Tokenizer, write_gguf
from qjax.qarray import QArray

TO_GGUF = {ours: theirs for theirs, ours in (LAYER | GLOBAL).items()}
BLOCK, ALIKE = 32, {(4, True, None), (5, True, None), (8, True, None), (4, False, "minimum"), (5, False, "minimum")}
"""Bits, sign and offset of the types that formats of ours, with scales in bfloat16 or float32, have equals among."""


def write(file: Path, arch: Architecture, leaves: Mapping[str, Any], tokenizer: Tokenizer | None) -> None:
    """The file of a model's parameters by path, arrays or quantized.

    Raises:
        ValueError: an architecture that is no Llama's; a parameter that llama.cpp has no tensor or block type for; each
            named, with the remedy.
    """
    if arch.beyond_llama:
        raise ValueError(f"this writer knows Llama-family models only, and this one has {arch.beyond_llama}")
    if arch.ffn_bias:
        raise ValueError("layers/0/ffn/gate_bias: this writer has no GGUF name for biases of the feed-forward part")
    writer = GGUFWriter(str(file), "llama")
    writer.add_block_count(arch.layers)
    writer.add_context_length(arch.context)
    writer.add_embedding_length(arch.width)
    writer.add_feed_forward_length(arch.ffn)
    writer.add_head_count(arch.heads)
    writer.add_head_count_kv(arch.kv_heads)
    writer.add_key_length(arch.head_dim)
    writer.add_value_length(arch.head_dim)
    writer.add_rope_dimension_count(arch.head_dim)
    writer.add_rope_freq_base(arch.theta)
    writer.add_layer_norm_rms_eps(arch.eps)
    writer.add_vocab_size(arch.vocab)
    writer.add_quantization_version(2)
    if tokenizer is None:
        writer.add_tokenizer_model("none")
    else:
        write_gguf(tokenizer, writer, arch.vocab)
    if arch.rope_factors is not None:
        writer.add_tensor(ROPE_FACTORS, np.asarray(arch.rope_factors, np.float32))
    for path, node in leaves.items():
        if is_operator(node):
            rows, kind = blocks(path, node)
        else:
            rows, kind = _floats(path, node)
        # llama.cpp's RoPE turns neighbours, ours i and i + head_dim / 2.
        if path.rpartition("/")[2].removesuffix("_bias") in ("q", "k"):
            rows = rows.reshape(-1, 2, arch.head_dim // 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
        writer.add_tensor(_name(path), np.ascontiguousarray(rows), raw_dtype=kind)
    try:
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def blocks(path: str, node: Any) -> tuple[np.ndarray, GGMLQuantizationType]:
    """A quantized matrix as rows of bytes, one an output, and the type of its blocks.

    A format of ours counts as the type that has its codes and blocks if float16 holds its scales and minima exactly.

    Raises:
        ValueError: no type holds it; names the path and the types.
    """
    leaf = as_leaf(path, node)
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
    if kind.name == "nvfp4":
        raise ValueError(f"{path}: nvfp4 has a tensor scale, which this writer does not store; use mxfp4 or q4_0")
    if q.meta.block[-1 if path == "embed" else -2] == 1:
        raise ValueError(
            f"{path}: its blocks lie along the outputs, those of ggml along the inputs; quantize that axis"
        )
    return np.asarray(ggml.to_bytes(q, kind)), GGMLQuantizationType[kind.name.upper()]


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


def _floats(path: str, w: Any) -> tuple[np.ndarray, GGMLQuantizationType]:
    """Rows [outputs, inputs] in the dtype they have; vectors in float32, as llama.cpp wants them."""
    array = np.asarray(w)
    if array.dtype.name not in ("float32", "float16", "bfloat16"):
        raise ValueError(f"{path} is {array.dtype.name}; parameters are float32, float16, bfloat16 or quantized")
    if array.ndim == 1:
        return array.astype(np.float32), GGMLQuantizationType.F32
    array = np.ascontiguousarray(array if path == "embed" else array.T)
    if array.dtype.name == "bfloat16":  # numpy has no such type: its bytes
        return array.view(np.uint8), GGMLQuantizationType.BF16
    return array, GGMLQuantizationType.F32 if array.dtype.itemsize == 4 else GGMLQuantizationType.F16


def _name(path: str) -> str:
    if not path.startswith("layers/"):
        return TO_GGUF[path]
    _, layer, local = path.split("/", 2)
    return f"blk.{layer}.{TO_GGUF[local]}"
