"""Folders in the Hugging Face layout, of `qjax.models.families`: config.json and safetensors, single or sharded.

What a quantized matrix's tensors mean its container says (`qjax.io.containers`).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qjax.io import cache_scales
from qjax.io.containers import schemes
from qjax.io.tensors import INDEX, Place, open_tensors
from qjax.models.architecture import Architecture
from qjax.models.decoder import TABLES, nest
from qjax.models.families import FAMILIES, Entry, Family, Fused
from qjax.models.gguf import checked
from qjax.trace.sites import Program

# Written by old versions of transformers; computed here.
DERIVED = ("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias", ".attention.bias", ".attention.masked_bias")
DERIVED += ("embeddings.position_ids",)
# What TensorFlow's checkpoints call the parameters of a norm.
OLD = {"gamma": "weight", "beta": "bias"}
# Parameters that are those of no module below their model.
BARE = ("cls_token", "position_embeddings")
# The number of an expert in the name of a module; in the name of a matrix of ours it is gate[3].
NUMBER = re.compile(r"(?<=\.experts\.)(?:0|[1-9]\d{0,4})(?=\.)")
FLOATS = ("float32", "float16", "bfloat16")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it describes a model of no family that can be read.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no config.json, so it is not a model folder")
    config = _settings(path)
    beside = folder / "hf_quant_config.json"
    if config.get("quantization_config") is None and beside.is_file():
        config["quantization_config"] = {"quant_method": "modelopt", **(_settings(beside).get("quantization") or {})}
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise ValueError(f"{path}: model_type is {kind!r}; those that can be read are {', '.join(FAMILIES)}")
    return config


def read_parameters(folder: Path, arch: Architecture, config: dict[str, Any]) -> dict[str, Any] | Program:
    """All parameters in our model's tree; files are memory-mapped, one tensor (or leaf of experts) is read at a time.

    Floats become float32 arrays; matrices that `quantization_config` names become `QArray`s [inputs, outputs] with the
    codes, scales and zero points of the file, `Pre(Quantize, q)` where it says that inputs are rounded too, and
    `Columns` where it reorders inputs. Where it rounds keys and values of the cache too, the result is a `Program` with
    that rounding as taps.

    Raises:
        FileNotFoundError: for a missing file or shard.
        ValueError: for tensors that are missing, unknown, of another shape or type, naming them; and for a
            `quantization_config` that is unknown.
    """
    quantization = config.get("quantization_config")
    scheme, cache = schemes(quantization), cache_scales.parse((quantization or {}).get("kv_cache_scheme"))
    leaves, stored = {}, _tensors(folder)
    family = FAMILIES[config.get("model_type", "llama")]
    if arch.layers > len(stored):  # before a name is made for each
        raise ValueError(f"{folder} has {len(stored)} tensors, too few for num_hidden_layers={arch.layers}")
    shapes = arch.shapes
    modules: dict[str, dict[str, np.ndarray]] = {}
    entries: dict[str, dict[int, Any]] = {}
    scales: dict[str, np.ndarray] = {}
    for name, tensor in _parts(stored, arch, family):
        module, suffix = _module(name)
        if cache is not None and suffix in cache_scales.SITES and module.startswith(family.layers):
            scales[f"layers/{module.removeprefix(family.layers).partition('.')[0]}/attn/{suffix}"] = tensor
            continue
        if suffix != "bias" and _linear(family, module) and scheme(module) is not None:
            modules.setdefault(module, {})[suffix] = tensor
            continue
        target = _float_target(family, folder, name, tensor)
        if isinstance(target, Entry):
            entries.setdefault(target.path, {})[target.number] = tensor
            continue
        leaves |= _parameters(family, arch, target, suffix, jnp.asarray(tensor).astype(jnp.float32))
    for module, tensors in modules.items():
        target, found = _target(family, module), scheme(module)
        path = target.path if isinstance(target, Entry) else target
        if found is None or not isinstance(path, str) or path not in shapes:
            raise ValueError(
                f"the checkpoint has a quantized {module}, the architecture has no "
                f"{path if isinstance(path, str) else 'such matrix by itself'}"
            )
        inputs, outputs = shapes[path][-2:]
        leaf = found.read(module, tensors, (inputs, outputs))
        if isinstance(target, Entry):
            entries.setdefault(path, {})[target.number] = leaf
        else:
            leaves[path] = leaf
    for path, matrices in entries.items():
        leaves[path] = _stacked(path, matrices, shapes.get(path, (0,)))
    params = nest(checked(leaves, arch))
    return params if cache is None else Program(params, cache_scales.read(cache, scales, arch))


def places(folder: Path, arch: Architecture, config: dict[str, Any]) -> dict[str, Place]:
    """Where each parameter of a float checkpoint lies, in the order of its files; nothing is read but their headers.

    A leaf of experts is its matrices one by one, "layers/0/ffn/experts/gate[3]".

    Raises:
        FileNotFoundError: for a missing file or shard.
        ValueError: a quantized checkpoint, a family that stores several matrices as one, or tensors that are missing,
            unknown, of another shape or type.
    """
    if config.get("quantization_config") is not None:
        raise ValueError(f"{folder} is quantized already; give the float checkpoint")
    family, found = FAMILIES[config.get("model_type", "llama")], {}
    whole: dict[str, Any] = {}
    entries: dict[str, dict[int, tuple[int, ...]]] = {}
    for file in _files(folder):
        for name, tensor in _parts(open_tensors(file), arch, family):
            target, suffix = _float_target(family, folder, name, tensor), _module(name)[1]
            if isinstance(target, Fused) or family.model is None:
                raise ValueError(
                    f"{folder}: {name} is stored in another form than ours, and {config['model_type']!r} folders are "
                    "not written; load it and keep the parameters with qjax.io.save"
                )
            path = f"{target.path}[{target.number}]" if isinstance(target, Entry) else _path(target, suffix)
            if path in found:
                raise ValueError(f"{file}: {name} is in another shard too")
            turned = _transposed(family, path, tensor)
            place = Place(file, name, tensor.shape[::-1] if turned else tensor.shape, tensor.dtype, turned)
            found[path] = place
            if isinstance(target, Entry):
                entries.setdefault(target.path, {})[target.number] = place.shape
            else:
                whole[path] = place
    for path, shapes in entries.items():
        shape = arch.shapes.get(path, (0,))
        _complete(path, shapes, shape[0])
        if wrong := [i for i, own in shapes.items() if own != shape[1:]]:
            raise ValueError(f"{path}[{wrong[0]}] has shape {shapes[wrong[0]]}, the architecture needs {shape[1:]}")
        whole[path] = jax.ShapeDtypeStruct(shape, np.float32)
    checked(whole, arch)
    return found


def hf_name(path: str, kind: str = "llama") -> str:
    """The Hugging Face name of one of our parameters, or of a matrix in a leaf of experts, in a family that is written.

    >>> hf_name("layers/3/attn/q"), hf_name("embed"), hf_name("layers/0/attn/q_bias")
    ('model.layers.3.self_attn.q_proj.weight', 'model.embed_tokens.weight', 'model.layers.0.self_attn.q_proj.bias')
    >>> hf_name("layers/0/ffn/experts/gate[3]", "qwen3_moe")
    'model.layers.0.mlp.experts.3.gate_proj.weight'
    """
    family, suffix = FAMILIES[kind], "bias" if path.endswith("_bias") else "weight"
    leaf, _, number = path.removesuffix("]").partition("[")
    own = leaf.removesuffix("_bias").removesuffix("/scale")
    names = {ours: theirs for theirs, ours in {**family.outer, **family.modules}.items()}
    if not path.startswith("layers/"):
        return f"{names[own]}.{suffix}"
    _, layer, local = own.split("/", 2)
    return f"{family.layers}{layer}.{names[local].replace('*', number)}.{suffix}"


def _tensors(folder: Path) -> dict[str, np.ndarray]:
    tensors: dict[str, np.ndarray] = {}
    for file in _files(folder):
        found = open_tensors(file)
        if twice := sorted(set(found) & set(tensors)):
            raise ValueError(f"{file}: {twice[0]} is in another shard too")
        tensors.update(found)
    return tensors


def _files(folder: Path) -> list[Path]:
    index = folder / INDEX
    if index.is_file():
        names = _settings(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
            raise ValueError(f"{index} has no weight_map of file names")
        names = sorted(set(names.values()))
    else:
        names = ["model.safetensors"]
    files = []
    for name in names:
        if Path(name).name != name:
            raise ValueError(f"{index} names the shard {name!r}, which is outside the folder")
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} lacks {name}")
        files.append(folder / name)
    return files


def _settings(path: Path) -> dict[str, Any]:
    """The object in a JSON file."""
    try:
        settings = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{path} holds no settings but {type(settings).__name__}")
    return settings


def _parts(stored: Mapping[str, np.ndarray], arch: Architecture, family: Family) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors that are parameters of a model with this head."""
    for name, tensor in stored.items():
        if (
            not name.endswith(DERIVED)
            and not (arch.tied and name == "lm_head.weight")
            and not _spare(family, arch, name)
        ):
            yield name, tensor


def _spare(family: Family, arch: Architecture, name: str) -> bool:
    """Whether a tensor belongs to another head than the architecture's, or is the embedding once more."""
    if not any(whole.startswith(family.spare) for whole in (name, family.base + name)):
        return False
    module, suffix = _module(name)
    target = _target(family, module)
    return not isinstance(target, str) or _path(target, suffix) not in arch.shapes


def _stacked(path: str, matrices: Mapping[int, Any], shape: tuple[int, ...]) -> Any:
    """The leaf [experts, in, out] of matrices by expert: stored floats [out, in], or quantized [in, out]."""
    _complete(path, matrices, shape[0])
    ordered = [matrices[i] for i in range(shape[0])]
    if all(isinstance(m, np.ndarray) for m in ordered):
        if wrong := [m.shape for m in ordered if m.shape != shape[:0:-1]]:
            raise ValueError(f"{path}: an expert is stored as {wrong[0]}, the architecture needs {shape[:0:-1]}")
        leaf = np.empty(shape, np.float32)
        for i, m in enumerate(ordered):
            leaf[i] = m.T
        return jnp.asarray(leaf)
    if any(isinstance(m, np.ndarray) for m in ordered) or len({jax.tree.structure(m) for m in ordered}) > 1:
        raise ValueError(
            f"{path}: its experts are quantized in different formats, or some in the order of their inputs and some in "
            "another, which one leaf of them does not hold; load the float checkpoint and quantize that"
        )

    def stack(*parts: Array) -> Array:
        dtype = functools.reduce(jnp.promote_types, (part.dtype for part in parts))  # scales lie in the narrowest
        return jnp.asarray(np.stack([np.asarray(part).astype(dtype, copy=False) for part in parts]))

    return jax.tree.map(stack, *ordered)


def _complete(path: str, numbers: Iterable[int], count: int) -> None:
    """ValueError unless the entries of a leaf are those from 0 to count - 1."""
    if odd := sorted(set(numbers) ^ set(range(count))):
        word = "lacks" if odd[0] < count else "also has"
        raise ValueError(f"{path} has {count} experts; the checkpoint {word} {', '.join(map(str, odd[:5]))}")


def _float_target(family: Family, folder: Path, name: str, tensor: np.ndarray) -> str | Fused | Entry:
    """What a float tensor is of."""
    module, suffix = _module(name)
    target = _target(family, module)
    if target is None or suffix not in ("weight", "bias") or (isinstance(target, Entry) and suffix == "bias"):
        raise ValueError(f"the checkpoint has a tensor {name!r} that no parameter of this family answers to")
    if tensor.dtype.name not in FLOATS:
        raise ValueError(f"{folder}: {name} is {tensor.dtype.name}, only {', '.join(FLOATS)} can be read as floats")
    return target


def _module(name: str) -> tuple[str, str]:
    """The module of a tensor, and what follows it: bitsandbytes has `weight.absmax` beside `weight`."""
    module, inside, rest = name.partition(".weight.")
    if inside:
        return module, f"weight.{rest}"
    module, _, suffix = name.rpartition(".")
    return (name, "weight") if suffix in BARE else (module, OLD.get(suffix, suffix))


def _linear(family: Family, module: str) -> bool:
    """Whether a module is one that settings call linear: it has a kernel, and is no norm, embedding or router.

    Runtimes hold a router as floats whatever the settings say; not all writers name it there.
    """
    target = _target(family, module)
    target = target.path if isinstance(target, Entry) else target
    paths = target.parts if isinstance(target, Fused) else () if target is None else (target,)
    return any(
        path in ("head", "transform", "pooler") or "/attn/" in path or "/ffn/" in path
        for path in paths
        if not path.endswith(("norm", "/router"))
    )


def _target(family: Family, module: str) -> str | Fused | Entry | None:
    """Our path, or paths, of a module; None where there is none."""
    if module not in family.outer and not module.startswith(family.layers):
        module = family.base + module
    if module in family.outer:
        return family.outer[module]
    layer, _, local = module.removeprefix(family.layers).partition(".")
    number = NUMBER.search(f".{local}")
    local = NUMBER.sub("*", f".{local}")[1:]
    if not module.startswith(family.layers) or local not in family.modules:
        return None
    found = family.modules[local]
    if isinstance(found, Fused):
        return Fused(tuple(f"layers/{layer}/{part}" for part in found.parts), found.by_head)
    path = f"layers/{layer}/{found}"
    return path if number is None else Entry(path, int(number[0]))


def _parameters(family: Family, arch: Architecture, target: str | Fused, suffix: str, w: Array) -> dict[str, Array]:
    """The parameters in one stored tensor."""
    if isinstance(target, Fused):
        rows = w.T if family.inputs_first and w.ndim == 2 else w
        return {
            f"{path}_bias" if suffix == "bias" else path: part.T if part.ndim == 2 else part
            for path, part in zip(target.parts, _apart(target, arch, rows), strict=True)
        }
    path = _path(target, suffix)
    if path.endswith("/scale"):
        return {path: w + jnp.float32(family.gain_offset)}
    if path in TABLES:
        return {path: w.reshape(-1, w.shape[-1])[family.skipped_positions if path == "positions" else 0 :]}
    if path == "patches":  # a convolution over [outputs, channels, height, width]
        w = w.reshape(w.shape[0], -1)
    return {path: w.T if _transposed(family, path, w) else w}


def _path(target: str, suffix: str) -> str:
    """Our path of a module's weight or bias."""
    if target.endswith("norm"):
        return f"{target}/bias" if suffix == "bias" else f"{target}/scale"
    return f"{target}_bias" if suffix == "bias" else target


def _transposed(family: Family, path: str, w: Array | np.ndarray) -> bool:
    """Whether a file has the transpose of our matrix; tables of rows are as they are."""
    return w.ndim == 2 and path not in TABLES and not family.inputs_first


def _apart(target: Fused, arch: Architecture, rows: Array) -> list[Array]:
    """The rows (outputs) of a fused matrix or bias, as those of its parts."""
    if target.by_head:
        count = len(target.parts)
        if rows.shape[0] != arch.heads * count * arch.head_dim:
            raise ValueError(
                f"{', '.join(target.parts)} are stored as one of {rows.shape[0]} outputs, not {count} a channel"
            )
        split = rows.reshape(arch.heads, count, arch.head_dim, *rows.shape[1:])
        return [split[:, i].reshape(-1, *rows.shape[1:]) for i in range(count)]
    sizes = [arch.shapes[path][-1] if path in arch.shapes else 0 for path in target.parts]
    if rows.shape[0] != sum(sizes):
        raise ValueError(f"{', '.join(target.parts)} have {sizes} outputs, but are stored as one of {rows.shape[0]}")
    return jnp.split(rows, np.cumsum(sizes)[:-1].tolist())
