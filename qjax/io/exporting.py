"""Export: quantized parameters of one of our models as a checkpoint that other runtimes open."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from qjax.dispatch import index, is_operator
from qjax.io import cache_scales, gguf
from qjax.io import layout as layouts
from qjax.io.atomic import atomically
from qjax.io.container import Container, Stored
from qjax.io.containers import CONTAINERS
from qjax.io.layout import Layout
from qjax.io.tensors import SHARD, write_tensors
from qjax.models.configuration import write_config
from qjax.models.decoder import Decoder, unstack_layers
from qjax.models.gguf import checked
from qjax.models.safetensors import hf_name
from qjax.models.tokenizer import Tokenizer
from qjax.operators import Pre
from qjax.qarray import QArray
from qjax.trace.paths import leaves_with_paths
from qjax.trace.sites import Program

FLOATS = ("float32", "bfloat16", "float16")
# Runtimes fuse these into one matrix, with one global scale.
FUSES = (
    "vLLM fuses q, k, v and gate, up under one and would compute other values (transformers does not); quantize them "
    "with one scale for vLLM"
)
FUSED = (
    ("attn/q", "attn/k", "attn/v"),
    *((f"{ffn}/gate", f"{ffn}/up") for ffn in ("ffn", "ffn/experts", "ffn/shared")),
)
ROUTER = "/ffn/router"


def export(
    path: str | os.PathLike[str],
    model: Decoder,
    qparams: Mapping[str, Any] | Program,
    *,
    to: str,
    layout: str | None = None,
    tokenizer: Tokenizer | None = None,
    shard: int = SHARD,
) -> None:
    """Write a checkpoint for another runtime, all of it or nothing.

    A Hugging Face folder: config.json with its `quantization_config`, safetensors, and the tokenizer's files, in the
    first family whose settings say the architecture, with a module for each expert of a mixture. Every number is
    written exactly: codes, scales and zero points are those of `qparams`, and what the container could not hold so is
    refused. The one exception is NVFP4's tensor scale, whose reciprocal is stored. Runtimes compute the weights in the
    model's dtype, which is written as the widest of all floats in `qparams`. Or, to "gguf", one file with metadata,
    tokenizer and ggml's blocks (`qjax.ggml`), embedding and head among them. Catalogue U4.

    Args:
        path: what to write; nothing may be there yet.
        model: a `qjax.models.Decoder`; its architecture becomes the configuration.
        qparams: its parameters, quantized kernels [inputs, outputs] or [experts, inputs, outputs] in place of arrays;
            embedding, norms, biases and routers float. `Pre(Quantize, q)` is kept where the container has a word for
            it, and so are the taps of a `Program` that round keys and values under static scales, one a layer or one a
            head, or by groups of channels: compressed-tensors' `kv_cache_scheme`.
        to: "compressed-tensors", "gptq", "awq" or "gguf".
        layout: how matrices lie, where the container knows several ("int-quantized", "gptq_v2"); the usual if None.
        tokenizer: as `qjax.models.load` returns it; without one the folder holds the model alone.
        shard: bytes of tensors in one file.

    Raises:
        FileExistsError: there is something at `path`.
        ValueError: an unknown container, or a leaf that it cannot hold; names the leaf and the remedy.
    """
    if to not in (*CONTAINERS, "gguf"):
        raise ValueError(f"to={to!r} is no container; there are {', '.join(CONTAINERS)}, gguf")
    program = qparams if isinstance(qparams, Program) else Program(qparams)
    if program.taps and to != "compressed-tensors":
        raise ValueError(
            f"taps on {', '.join(program.taps)}: {to} holds weights alone; give the program's params, or for keys and "
            'values under static scales to="compressed-tensors"'
        )
    leaves = _leaves(model, program.params)
    if to == "gguf":
        if layout is not None:
            raise ValueError(f"layout={layout!r}: GGUF has one, the type of each block is that of its format")
        with atomically(path) as file:
            gguf.write(file, model.arch, leaves, tokenizer)
        return
    config = write_config(model.arch)
    with atomically(path) as folder:
        folder.mkdir()
        parts = {name: node for path, leaf in leaves.items() for name, node in _modules(path, leaf)}
        made = plan(CONTAINERS[to], parts, config["model_type"], layout)
        _warn_of_fused(leaves)
        tensors: dict[str, np.ndarray] = {}
        for name, node in parts.items():
            tensors |= tensors_of(name, node, made)
        if program.taps:
            scheme, scales = cache_scales.write(program.taps, model.arch, made.dtype)
            made = made._replace(settings={**made.settings, "kv_cache_scheme": scheme})
            tensors |= {_beside_attention(name, made.kind): scale for name, scale in scales.items()}
        config["dtype"] = made.dtype
        if tokenizer is not None:
            tokenizer.write(folder)
            ids = {"bos": tokenizer.bos, "eos": tokenizer.eos, "pad": tokenizer.pad}
            config |= {f"{name}_token_id": i for name, i in ids.items()}
        (folder / "config.json").write_text(json.dumps({**config, "quantization_config": made.settings}, indent=2))
        write_tensors(folder, tensors, shard)


def _beside_attention(path: str, kind: str) -> str:
    """The file's name of "layers/<i>/attn/k_scale"."""
    attention, _, name = path.rpartition("/")
    return f"{_module(f'{attention}/q', kind).rpartition('.')[0]}.{name}"


def _leaves(model: Decoder, qparams: Mapping[str, Any]) -> dict[str, Any]:
    """Every parameter by its path, checked against the architecture."""
    params = unstack_layers(qparams) if model.scan else qparams
    return checked(leaves_with_paths(params), model.arch)


def _modules(path: str, leaf: Any) -> Iterator[tuple[str, Any]]:
    """A parameter as it is, or the matrices of a leaf of experts: "layers/0/ffn/experts/gate[3]"."""
    if leaf.ndim < 3:
        yield path, leaf
        return
    host = jax.tree.map(np.asarray, leaf)  # a slice compiles nothing there
    for i in range(leaf.shape[0]):
        yield f"{path}[{i}]", _expert(host, i)


def _expert(leaf: Any, i: int) -> Any:
    if not is_operator(leaf):
        return leaf[i]
    if isinstance(leaf, Pre) and not leaf.T.batch_shape:  # the input of all experts is rounded alike
        return Pre(leaf.T, _expert(leaf.op, i))
    return index(leaf, i)


class Plan(NamedTuple):
    """How a folder will lie: its family, which matrices are quantized and how, the floats' dtype, and the settings."""

    kind: str
    layouts: Mapping[str, Layout]
    dtype: str
    settings: dict[str, Any]


def plan(container: Container, leaves: Mapping[str, Any], kind: str, layout: str | None = None) -> Plan:
    """The plan of a model's parameters by path, each expert's by itself, in the family `kind`.

    Their values are not read, so shapes and dtypes serve as well.

    Raises:
        ValueError: an unknown layout, a leaf that the container cannot hold, or nothing quantized.
    """
    if layout is not None and layout not in (names := [option.name for option in container.layouts]):
        raise ValueError(f"layout={layout!r} is none of {container.name}: {', '.join(names)}")
    stored: dict[str, Stored] = {}
    plain: dict[str, Any] = {}
    for path, node in leaves.items():
        if is_operator(node) and not _is_matrix(path, node):
            raise ValueError(f"{path}: {container.name} holds quantized kernels only; leave it float (qjax.dense)")
        if is_operator(node) and path.endswith(ROUTER):
            raise ValueError(f"{path}: runtimes hold the router of experts in float; leave it float (qjax.dense)")
        if is_operator(node):
            stored[path] = container.store(path, node, layout)
        elif str(node.dtype) in FLOATS:
            plain[path] = node
        else:
            raise ValueError(f"{path} is {node.dtype}; parameters are {', '.join(FLOATS)} or quantized")
    if not stored:
        raise ValueError(f"no parameter is quantized, so there is nothing for {container.name} to hold")
    floats = [_module(path, kind) for path, node in plain.items() if _is_matrix(path, node)]
    if "head" not in leaves:
        floats.append("lm_head")  # tied: a linear module to those who read the settings
    settings = container.settings({_module(path, kind): entry for path, entry in stored.items()}, floats)
    return Plan(kind, {path: entry.layout for path, entry in stored.items()}, _dtype(stored, plain), settings)


def tensors_of(path: str, node: Any, made: Plan) -> dict[str, np.ndarray]:
    """The tensors of one parameter, by their names in the folder."""
    if path in made.layouts:
        written = layouts.write(path, layouts.as_leaf(path, node), made.layouts[path], made.dtype)
        return {f"{_module(path, made.kind)}.{suffix}": tensor for suffix, tensor in written.items()}
    w = np.asarray(node).astype(made.dtype, copy=False)
    return {hf_name(path, made.kind): np.ascontiguousarray(w.T if _is_matrix(path, node) else w)}


def _is_matrix(path: str, node: Any) -> bool:
    """Whether a parameter is the kernel of a linear module."""
    return node.ndim == 2 and path != "embed"


def _module(path: str, kind: str) -> str:
    return hf_name(path, kind).removesuffix(".weight")


def _dtype(stored: Mapping[str, Stored], plain: Mapping[str, Any]) -> str:
    """The dtype in which a runtime has to hold floats so that none of ours changes."""
    found = {str(node.dtype) for node in plain.values()}
    for leaf, _ in stored.values():
        found |= {str(leaf.q.dtype), *(str(s.dtype) for s in leaf.q.scales)} & set(FLOATS)
    return found.pop() if len(found) == 1 else "float32"


def _warn_of_fused(leaves: Mapping[str, Any]) -> None:
    """Runtimes that fuse matrices take one tensor scale for all: other values than ours unless they are equal."""
    layers = sorted({path[: path.index("/", len("layers/"))] for path in leaves if path.startswith("layers/")})
    for layer in layers:
        for names in FUSED:
            nodes = [leaves.get(f"{layer}/{name}") for name in names]
            scales = [q.scales[0] for q in nodes if isinstance(q, QArray) and q.scales]
            outer = [np.ravel(np.asarray(scale.scales[0])) for scale in scales if isinstance(scale, QArray)]
            if any(not np.array_equal(outer[0], a) for a in outer[1:]):  # of each expert, where there are experts
                warnings.warn(
                    f"{layer}: {', '.join(names)} have tensor scales of their own; {FUSES}",
                    stacklevel=3,
                )
                return
