"""GGUF files of the Llama, Qwen2 and Qwen3 architectures, read with the `gguf` package."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from gguf import GGUFReader, ReaderTensor
from gguf.quants import dequantize
from jax import Array

from qjax import ggml
from qjax.models.architecture import Architecture
from qjax.models.decoder import nest
from qjax.qarray import QArray

# GGUF name of a layer's tensor to our path below layers/<i>.
LAYER = {
    "attn_norm.weight": "attn_norm/scale",
    "attn_q.weight": "attn/q",
    "attn_k.weight": "attn/k",
    "attn_v.weight": "attn/v",
    "attn_output.weight": "attn/o",
    "attn_q.bias": "attn/q_bias",
    "attn_k.bias": "attn/k_bias",
    "attn_v.bias": "attn/v_bias",
    "attn_output.bias": "attn/o_bias",
    "attn_q_norm.weight": "attn/q_norm/scale",
    "attn_k_norm.weight": "attn/k_norm/scale",
    "ffn_norm.weight": "ffn_norm/scale",
    "ffn_gate.weight": "ffn/gate",
    "ffn_up.weight": "ffn/up",
    "ffn_down.weight": "ffn/down",
}
GLOBAL = {"token_embd.weight": "embed", "output_norm.weight": "norm/scale", "output.weight": "head"}


class Kind(NamedTuple):
    """What a `general.architecture` means beyond its metadata.

    neighbours : llama.cpp turns channels 2i and 2i + 1 of its queries and keys, so that rows of q and k are reordered.
    qk_norm    : `Architecture.qk_norm`.
    """

    neighbours: bool = False
    qk_norm: str | None = None


KINDS: Mapping[str, Kind] = {"llama": Kind(neighbours=True), "qwen2": Kind(), "qwen3": Kind(qk_norm="head")}
# Types that hold floats, one by one.
FLOATS = ("F32", "F16", "BF16")
# Not parameters: Llama 3.1's frequency divisors, which become part of the architecture.
ROPE_FACTORS = "rope_freqs.weight"


def open_gguf(path: str | Path) -> GGUFReader:
    """The file memory-mapped.

    Raises:
        ValueError: if it is no GGUF file, or a model of another architecture than `KINDS` has.
    """
    try:
        reader = GGUFReader(path)
    # The reader checks the magic number and then trusts the lengths it finds.
    except (ValueError, IndexError, KeyError) as error:
        raise ValueError(f"{path} is not a readable GGUF file: {error}") from error
    family = metadata(reader, "general.architecture")
    if not isinstance(family, str) or family not in KINDS:
        raise ValueError(f"{path} holds a {family!r} model; those that can be read are {', '.join(KINDS)}")
    return reader


def metadata(reader: GGUFReader, key: str, default: Any = None) -> Any:
    """The value stored under `key`, or `default`."""
    field = reader.fields.get(key)
    return default if field is None else field.contents()


def read_architecture(reader: GGUFReader) -> Architecture:
    """Sizes and variants from the file's metadata."""
    family = metadata(reader, "general.architecture")

    def given(key: str, default: Any = None) -> Any:
        return metadata(reader, f"{family}.{key}", default)

    def need(key: str) -> Any:
        if (value := given(key)) is None:
            raise ValueError(f"the GGUF file lacks the key '{family}.{key}'")
        return value

    tensors = {tensor.name: tensor for tensor in reader.tensors}
    width, heads = int(need("embedding_length")), int(need("attention.head_count"))
    head_dim = int(given("attention.key_length", width // heads))
    rotated = int(given("rope.dimension_count", head_dim))
    if rotated != head_dim:
        raise ValueError(f"RoPE on {rotated} of {head_dim} channels is not supported")
    scaling = given("rope.scaling.type", "none")
    factors = None
    if ROPE_FACTORS in tensors:
        factors = tuple(float(f) for f in tensors[ROPE_FACTORS].data)
    elif scaling == "linear":
        factors = (float(need("rope.scaling.factor")),) * (head_dim // 2)
    elif scaling != "none":
        raise ValueError(f"RoPE scaling {scaling!r} is not supported")
    return Architecture(
        vocab=int(tensors["token_embd.weight"].shape[1]),
        width=width,
        layers=int(need("block_count")),
        heads=heads,
        kv_heads=int(given("attention.head_count_kv", heads)),
        head_dim=head_dim,
        ffn=int(need("feed_forward_length")),
        eps=float(need("attention.layer_norm_rms_epsilon")),
        theta=float(given("rope.freq_base", 10000.0)),
        rope_factors=factors,
        tied="output.weight" not in tensors,
        qkv_bias="blk.0.attn_q.bias" in tensors,
        o_bias="blk.0.attn_output.bias" in tensors,
        context=int(given("context_length", 2048)),
        qk_norm=KINDS[family].qk_norm,
    )


def read_parameters(reader: GGUFReader, arch: Architecture, quantized: bool = False) -> dict[str, Any]:
    """All parameters in the decoder's tree: float32 arrays, or with `quantized` the file's own blocks as they are.

    A matrix that the file keeps in a block type is then a `QArray` whose values are exactly those of the float load;
    what the file keeps in floats stays a float32 array.

    Raises:
        ValueError: for tensors that are missing, unknown, of another shape or of a type with no `QArray`, naming them.
    """
    leaves: dict[str, Array | QArray] = {}
    kind = KINDS[metadata(reader, "general.architecture")]
    for tensor in reader.tensors:
        if tensor.name == ROPE_FACTORS:
            continue
        path = _path(tensor.name)
        if path is None:
            raise ValueError(f"the GGUF file has a tensor {tensor.name!r} that no parameter answers to")
        if quantized and tensor.tensor_type.name not in FLOATS:
            leaves[path] = _blocks(tensor, arch, kind, path)
        else:
            # A plain view: every slice of a memmap would pay for being one.
            w = _rows(dequantize(np.asarray(tensor.data), tensor.tensor_type), arch, kind, path)
            leaves[path] = jnp.asarray(w if _axis(path) == -1 or w.ndim == 1 else np.ascontiguousarray(w.T))
    return nest(checked(leaves, arch))


def cells(path: str | Path) -> dict[str, Array]:
    """Grid spacing of every Q4_1 tensor of a GGUF file.

    A Q4_1 weight is `minimum + scale * code`, code 0 to 15, in blocks of 32 along its input axis, so `scale` is the
    width of the cell in which the original weight must have lain (but for the ends of the range).

    Returns:
        Path of the parameter to float32 [in / 32, out]; `jnp.repeat(cells[path], 32, axis=0)` gives it per weight.
    """
    reader = open_gguf(path)
    arch, kind = read_architecture(reader), KINDS[metadata(reader, "general.architecture")]
    spacing: dict[str, Array] = {}
    for tensor in reader.tensors:
        ours = _path(tensor.name)
        if tensor.tensor_type.name == "Q4_1" and ours is not None:
            (scale,) = _blocks(tensor, arch, kind, ours).scales
            assert isinstance(scale, Array)
            spacing[ours] = scale.astype(jnp.float32)
    return spacing


def checked(leaves: dict[str, Any], arch: Architecture) -> dict[str, Any]:
    """The same leaves, if they are what `arch` needs: every path, each with its shape.

    Raises:
        ValueError: naming the first parameter that is missing, superfluous or of another shape.
    """
    wanted = arch.shapes
    for path, shape in wanted.items():
        if path not in leaves:
            raise ValueError(f"the checkpoint lacks {path} {shape}")
        if leaves[path].shape != shape:
            raise ValueError(f"{path} has shape {leaves[path].shape}, the architecture needs {shape}")
    extra = sorted(set(leaves) - set(wanted))
    if extra:
        raise ValueError(f"the checkpoint has parameters the architecture does not know: {', '.join(extra[:5])}")
    return leaves


def _path(name: str) -> str | None:
    if name in GLOBAL:
        return GLOBAL[name]
    prefix, _, rest = name.partition(".")
    layer, _, local = rest.partition(".")
    return f"layers/{layer}/{LAYER[local]}" if prefix == "blk" and local in LAYER else None


def _axis(path: str) -> int:
    """Where a parameter's inputs lie: kernels are [in, out], the embedding is a table of rows."""
    return -1 if path == "embed" else -2


def _blocks(tensor: ReaderTensor, arch: Architecture, kind: Kind, path: str) -> QArray:
    """The tensor's bytes as a quantized array in our layout."""
    name = tensor.tensor_type.name.lower()
    if name not in ggml.TYPES:
        raise ValueError(
            f"{tensor.name} is {tensor.tensor_type.name}, which cannot be kept quantized (types that can: "
            f"{', '.join(ggml.TYPES)}); load with quantized=False"
        )
    return ggml.from_bytes(jnp.asarray(_rows(np.asarray(tensor.data), arch, kind, path)), name, _axis(path))


def _rows(w: np.ndarray, arch: Architecture, kind: Kind, path: str) -> np.ndarray:
    """The rows (outputs) of a tensor, numbers or bytes, in our order.

    Where llama.cpp's RoPE turns neighbours, it has ordered those of q and k so; ours turns i and i + head_dim / 2.
    """
    if not kind.neighbours or path.rpartition("/")[2].removesuffix("_bias") not in ("q", "k"):
        return w
    return w.reshape(-1, arch.head_dim // 2, 2, *w.shape[1:]).swapaxes(1, 2).reshape(w.shape)
