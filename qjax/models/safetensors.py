"""Llama-family directories in the Hugging Face layout: config.json and safetensors, single or sharded."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax.numpy as jnp
from jax import Array
from safetensors import SafetensorError, safe_open

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
FLOATS = ("F32", "F16", "BF16")


def read_config(folder: Path) -> dict[str, Any]:
    """config.json of a model folder.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it does not describe a float Llama-family model.
    """
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no config.json, so it is not a model folder")
    config = json.loads(path.read_text())
    if config.get("model_type") != "llama":
        raise ValueError(f"{path}: model_type is {config.get('model_type')!r}, only 'llama' can be read")
    if "quantization_config" in config:
        raise ValueError(f"{path} describes quantized weights, which this loader does not decode")
    return config


def read_architecture(config: dict[str, Any]) -> Architecture:
    """Sizes and variants from a config.json.

    Raises:
        ValueError: for a variant that the decoder does not have, naming the key.
    """
    if config.get("hidden_act", "silu") != "silu":
        raise ValueError(f"hidden_act is {config['hidden_act']!r}, only 'silu' is supported")
    heads, width = int(config["num_attention_heads"]), int(config["hidden_size"])
    head_dim = int(config.get("head_dim") or width // heads)
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


def read_parameters(folder: Path, arch: Architecture) -> dict[str, Any]:
    """All parameters as float32 arrays in the decoder's tree; files are memory-mapped, one tensor is read at a time.

    Raises:
        FileNotFoundError: for a missing file or shard.
        ValueError: for tensors that are missing, unknown, of another shape or type, naming them.
    """
    leaves: dict[str, Array] = {}
    for file in _files(folder):
        try:
            with safe_open(file, framework="flax") as shard:
                for name in shard.keys():  # noqa: SIM118 - not a dict
                    path = _path(name, arch)
                    if path is None:
                        continue
                    kind = shard.get_slice(name).get_dtype()
                    if kind not in FLOATS:
                        raise ValueError(f"{file}: {name} is {kind}, only {', '.join(FLOATS)} can be read")
                    w = shard.get_tensor(name).astype(jnp.float32)
                    leaves[path] = w.T if w.ndim == 2 and path != "embed" else w
        except SafetensorError as error:
            raise ValueError(f"{file} is not a readable safetensors file: {error}") from error
    return nest(checked(leaves, arch))


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
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
