"""Llama-family directories in the Hugging Face layout: config.json and safetensors, single or sharded.

What a quantized matrix's tensors mean its container says (`qjax.io.containers`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from qjax.io import layout
from qjax.io.containers import schemes
from qjax.io.tensors import INDEX, open_tensors
from qjax.models.architecture import Architecture, llama3_rope_factors
from qjax.models.decoder import nest
from qjax.models.gguf import checked

LAYER = {
    "input_layernorm.weight": "attn_norm/scale",
    "self_attn.q_proj.weight": "attn/q",
    "self_attn.k_proj.weight": "attn/k",
    "self_attn.v_proj.weight": "attn/v",
    "self_attn.o_proj.weight": "attn/o",
    "self_attn.q_proj.bias": "attn/q_bias",
    "self_attn.k_proj.bias": "attn/k_bias",
    "self_attn.v_proj.bias": "attn/v_bias",
    "self_attn.o_proj.bias": "attn/o_bias",
    "post_attention_layernorm.weight": "ffn_norm/scale",
    "mlp.gate_proj.weight": "ffn/gate",
    "mlp.up_proj.weight": "ffn/up",
    "mlp.down_proj.weight": "ffn/down",
    "mlp.gate_proj.bias": "ffn/gate_bias",
    "mlp.up_proj.bias": "ffn/up_bias",
    "mlp.down_proj.bias": "ffn/down_bias",
}
GLOBAL = {"model.embed_tokens.weight": "embed", "model.norm.weight": "norm/scale", "lm_head.weight": "head"}
# Written by old versions of transformers; computed here.
DERIVED = "rotary_emb.inv_freq"
FLOATS = ("float32", "float16", "bfloat16")
SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "rms_norm_eps")
# RoPE divisors are a tuple: a number like 2^40 must not be tried.
WIDEST = 2**14
TO_HF = {ours: theirs for theirs, ours in (LAYER | GLOBAL).items()}


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it does not describe a Llama-family model.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no config.json, so it is not a model folder")
    config = _settings(path)
    if config.get("model_type") != "llama":
        raise ValueError(f"{path}: model_type is {config.get('model_type')!r}, only 'llama' can be read")
    return config


def read_architecture(config: dict[str, Any]) -> Architecture:
    """Sizes and variants from a config.json.

    Raises:
        ValueError: for a variant that the decoder does not have, naming the key, or settings of another structure.
    """
    try:
        return _architecture(config)
    except (AttributeError, KeyError, OverflowError, TypeError) as error:
        raise ValueError(f"config.json is malformed ({type(error).__name__}: {error})") from error


def _architecture(config: dict[str, Any]) -> Architecture:
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act is {config['hidden_act']!r}, only 'silu' is supported")
    if missing := [key for key in SIZES if not isinstance(config.get(key), int | float)]:
        raise ValueError(f"config.json has no number for {', '.join(missing)}")
    heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
    head_dim = int(config.get("head_dim") or width // max(heads, 1))
    if head_dim > WIDEST:
        raise ValueError(f"head_dim is {head_dim}; heads have at most {WIDEST} channels")
    # transformers 5 keeps theta and the scaling together; before, they were two keys.
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    theta = float(config.get("rope_theta") or rope.get("rope_theta", 10000.0))
    return Architecture(
        vocab=int(config["vocab_size"]),
        width=width,
        layers=int(config["num_hidden_layers"]),
        heads=heads,
        kv_heads=int(config.get("num_key_value_heads") or heads),
        head_dim=head_dim,
        ffn=int(config["intermediate_size"]),
        eps=float(config["rms_norm_eps"]),
        theta=theta,
        rope_factors=_rope_factors(rope, head_dim, theta),
        tied=bool(config.get("tie_word_embeddings", False)),
        qkv_bias=bool(config.get("attention_bias", False)),
        o_bias=bool(config.get("attention_bias", False)),
        ffn_bias=bool(config.get("mlp_bias", False)),
        context=int(config.get("max_position_embeddings", 2048)),
    )


def write_config(arch: Architecture) -> dict[str, Any]:
    """The config.json of an architecture: what `read_architecture` reads back.

    Raises:
        ValueError: RoPE divisors, or biases, that a Llama configuration has no keys for.
    """
    if arch.qkv_bias != arch.o_bias:
        raise ValueError(
            "a Llama config.json has one key for the biases of q, k, v and o: they all have one or none has"
        )
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": arch.vocab,
        "hidden_size": arch.width,
        "num_hidden_layers": arch.layers,
        "num_attention_heads": arch.heads,
        "num_key_value_heads": arch.kv_heads,
        "head_dim": arch.head_dim,
        "intermediate_size": arch.ffn,
        "hidden_act": "silu",
        "rms_norm_eps": arch.eps,
        "rope_theta": arch.theta,
        "rope_scaling": _rope_scaling(arch),
        "tie_word_embeddings": arch.tied,
        "attention_bias": arch.qkv_bias,
        "mlp_bias": arch.ffn_bias,
        "max_position_embeddings": arch.context,
    }


def read_parameters(folder: Path, arch: Architecture, config: dict[str, Any]) -> dict[str, Any]:
    """All parameters in the decoder's tree; files are memory-mapped, one tensor is read at a time.

    Floats become float32 arrays; matrices that `quantization_config` names become `QArray`s [inputs, outputs] with the
    codes, scales and zero points of the file, `Pre(Quantize, q)` where it says that inputs are rounded too, and
    `Columns` where it reorders inputs.

    Raises:
        FileNotFoundError: for a missing file or shard.
        ValueError: for tensors that are missing, unknown, of another shape or type, naming them; and for a
            `quantization_config` that is unknown.
    """
    scheme, leaves, stored = schemes(config.get("quantization_config")), {}, _tensors(folder)
    if arch.layers > len(stored):  # before a name is made for each
        raise ValueError(f"{folder} has {len(stored)} tensors, too few for num_hidden_layers={arch.layers}")
    shapes = arch.shapes
    modules: dict[str, dict[str, np.ndarray]] = {}
    for name, tensor in stored.items():
        module, _, suffix = name.rpartition(".")
        if suffix != "bias" and _linear(module) and scheme(module) is not None:
            modules.setdefault(module, {})[suffix] = tensor
            continue
        path = _path(name, arch)
        if path is None:
            continue
        if tensor.dtype.name not in FLOATS:
            raise ValueError(f"{folder}: {name} is {tensor.dtype.name}, only {', '.join(FLOATS)} can be read as floats")
        w = jnp.asarray(tensor).astype(jnp.float32)
        leaves[path] = w.T if w.ndim == 2 and path != "embed" else w
    for module, tensors in modules.items():
        path, found = _path(f"{module}.weight", arch), scheme(module)
        if found is None or path not in shapes:
            raise ValueError(
                f"the checkpoint has a quantized {module}, the architecture has no {path or 'such matrix'}"
            )
        inputs, outputs = shapes[path]
        leaves[path] = layout.read(module, tensors, found, (inputs, outputs))
    return nest(checked(leaves, arch))


def hf_name(path: str) -> str:
    """The Hugging Face name of one of our parameters.

    >>> hf_name("layers/3/attn/q"), hf_name("embed")
    ('model.layers.3.self_attn.q_proj.weight', 'model.embed_tokens.weight')
    """
    if not path.startswith("layers/"):
        return TO_HF[path]
    _, layer, local = path.split("/", 2)
    return f"model.layers.{layer}.{TO_HF[local]}"


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


def _linear(module: str) -> bool:
    """Whether a module is one that settings call linear."""
    return module.endswith("_proj") or module == "lm_head"


def _path(name: str, arch: Architecture) -> str | None:
    """Our path of a Hugging Face name; None for what is not a parameter."""
    if name.endswith(DERIVED) or (arch.tied and name == "lm_head.weight"):
        return None
    if name in GLOBAL:
        return GLOBAL[name]
    layer, _, local = name.removeprefix("model.layers.").partition(".")
    if not name.startswith("model.layers.") or local not in LAYER:
        raise ValueError(f"the checkpoint has a tensor {name!r} that no Llama-family parameter answers to")
    return f"layers/{layer}/{LAYER[local]}"


def _rope_factors(rope: dict[str, Any], head_dim: int, theta: float) -> tuple[float, ...] | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return None
    if kind == "linear":
        return (float(rope["factor"]),) * (head_dim // 2)
    if kind == "llama3":
        low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
        original = int(rope["original_max_position_embeddings"])
        return llama3_rope_factors(head_dim, theta, float(rope["factor"]), low, high, original)
    raise ValueError(f"RoPE scaling {kind!r} is not supported")


def _rope_scaling(arch: Architecture) -> dict[str, Any] | None:
    """The inverse of `_rope_factors`: the divisors say which rule made them, if one did."""
    if arch.rope_factors is None:
        return None
    factor = max(arch.rope_factors)
    options = (
        {"rope_type": "linear", "factor": factor},
        {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192,
        },
    )
    for option in options:
        if _rope_factors(option, arch.head_dim, arch.theta) == arch.rope_factors:
            return option
    raise ValueError(f"rope_factors {arch.rope_factors} are neither one number nor those of Llama 3.1")
