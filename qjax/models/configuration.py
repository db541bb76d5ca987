"""config.json of a Hugging Face folder as an architecture, and back."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

from qjax.models.architecture import Architecture, Experts, llama3_rope_factors
from qjax.models.encoding import Encoding, Patches
from qjax.models.families import FAMILIES, INERT, KEYS, Family

SIZES = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "rms_norm_eps")
# RoPE divisors are a tuple: a number like 2^40 must not be tried.
WIDEST = 2**14
ROPE_KEYS = {"type", "rope_type", "rope_theta", "factor", "low_freq_factor", "high_freq_factor"} | {
    "original_max_position_embeddings"
}
ACTIVATIONS = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_tanh",
    "gelu_pytorch_tanh": "gelu_tanh",
    "relu": "relu",
}


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
    kind = config.get("model_type", "llama")
    family = FAMILIES[kind]
    _refuse_unknown(config, kind, family)
    given: dict[str, Any] = {name: config.get(family.name(name)) for name in KEYS}
    given |= {name: config.get(family.name(name), value) for name, value in family.settings.items()}
    if given.get("intermediate_size") is None and family.ffn_ratio is not None:
        given |= {"intermediate_size": family.ffn_ratio * int(given["hidden_size"])}
    if missing := [family.name(name) for name in SIZES if not isinstance(given[name], int | float)]:
        raise ValueError(f"config.json has no number for {', '.join(missing)}")
    activation = given["hidden_act"] or "silu"
    if activation not in ACTIVATIONS:
        raise ValueError(f"{family.name('hidden_act')} is {activation!r}; those known are {', '.join(ACTIVATIONS)}")
    heads, width, layers = (int(given[name]) for name in ("num_attention_heads", "hidden_size", "num_hidden_layers"))
    head_dim = int(given["head_dim"] or width // max(heads, 1))
    if head_dim > WIDEST:
        raise ValueError(f"head_dim is {head_dim}; heads have at most {WIDEST} channels")
    # transformers 5 keeps theta and the scaling together; before, they were two keys.
    rope = {**(given["rope_parameters"] or given["rope_scaling"] or {})}
    local = {**rope.get("sliding_attention", {})}
    rope = {**rope.get("full_attention", rope)}
    if local.get("rope_type", "default") != "default":
        raise ValueError(
            f"config.json: layers with a window have RoPE scaling {local['rope_type']!r}, which is not known"
        )
    theta = float(config.get(family.name("rope_theta")) or rope.get("rope_theta") or given["rope_theta"] or 10000.0)
    share = rope.pop("partial_rotary_factor", given.get("partial_rotary_factor"))
    if share not in (None, 1) and "partial_rotary_factor" not in family.settings:
        raise ValueError(f"config.json: partial_rotary_factor is {share!r}, which {kind!r} models do not have")
    rotary = head_dim if share is None else int(head_dim * float(share))
    biased = bool(given.get("attention_bias"))
    pre, local_theta = given.get("query_pre_attn_scalar"), given.get("rope_local_base_freq")
    if given.get("word_embed_proj_dim") not in (None, width):
        raise ValueError(f"config.json: word_embed_proj_dim is {given['word_embed_proj_dim']}, not hidden_size={width}")
    variants = {
        "vocab": int(given["vocab_size"]),
        "width": width,
        "layers": layers,
        "heads": heads,
        "kv_heads": int(given["num_key_value_heads"] or heads),
        "head_dim": head_dim,
        "ffn": int(given["intermediate_size"]),
        "eps": float(given["rms_norm_eps"]),
        "theta": theta,
        **_rope(rope, given, rotary, theta),
        "rotary": None if rotary == head_dim else rotary,
        "tied": bool(given["tie_word_embeddings"]),
        "qkv_bias": biased,
        "o_bias": biased,
        "ffn_bias": bool(given.get("mlp_bias")),
        "context": int(given["max_position_embeddings"] or 2048),
        "activation": ACTIVATIONS[activation],
        "windows": (windows := _windows(given, layers)),
        "window_theta": float(local.get("rope_theta") or local_theta) if local_theta and windows else None,
        "parallel": bool(given.get("use_parallel_residual")),
        "embed_scale": width**0.5 if family.scaled_embedding else 1.0,
        "query_scale": None if pre is None else float(pre) ** -0.5,
        "score_cap": given.get("attn_logit_softcapping"),
        "logit_cap": given.get("final_logit_softcapping"),
        "experts": _experts(given, layers),
        "encoding": (encoding := _encoding(config, given, family)),
    }
    if encoding is not None and encoding.patches is not None:
        variants["context"] = encoding.patches.count + 1
    return Architecture(**{**variants, **family.fields})


def _encoding(config: dict[str, Any], given: dict[str, Any], family: Family) -> Encoding | None:
    """`Architecture.encoding` of a family that has one: the head by the model's class, no head if none is named."""
    if not family.heads:
        return None
    named = next(iter(config.get("architectures") or family.heads))
    if named not in family.heads:
        raise ValueError(
            f"config.json: architectures names {named!r}; heads known are those of {', '.join(family.heads)}"
        )
    head = family.heads[named]
    classes = len(config.get("id2label") or ()) or int(config.get("num_labels") or 2)
    patches = None
    if "image_size" in given:
        patches = Patches(_pair(given["image_size"]), _pair(given["patch_size"]), int(given["num_channels"]))
    return Encoding(
        types=int(given.get("type_vocab_size") or 0),
        patches=patches,
        head=head,
        classes=0 if head in ("states", "words") else classes,
    )


def _pair(size: int | list[int]) -> tuple[int, int]:
    """Height and width, which may be one number."""
    height, width = size if isinstance(size, list) else (size, size)
    return int(height), int(width)


def _refuse_unknown(config: dict[str, Any], kind: str, family: Family) -> None:
    """A setting nobody here reads may change the function, unless it is off or known not to."""
    known = {family.name(name) for name in (*KEYS, *family.settings)} | {*family.only, *INERT}
    for key, value in config.items():
        if key not in known and value not in (None, False, 0, "", [], {}):
            raise ValueError(f"config.json: {key} is {value!r}, a setting of {kind!r} models that is not known here")
    for key, value in family.only.items():
        if config.get(key, value) != value:
            raise ValueError(f"config.json: {key} is {config[key]!r}; {kind!r} models can be read with {value!r} only")


def _windows(given: dict[str, Any], layers: int) -> tuple[int, ...]:
    """`Architecture.windows`: layers by name, from one number on, or all."""
    size = given.get("sliding_window") if given.get("use_sliding_window", True) else None
    if size is None:
        return ()
    if int(size) < 1:
        raise ValueError(f"config.json: sliding_window is {size}, no number of tokens")
    kinds, first = given.get("layer_types"), given.get("max_window_layers")
    every = given.get("sliding_window_pattern")
    if kinds is not None:
        if len(kinds) != layers or not set(kinds) <= {"sliding_attention", "full_attention"}:
            raise ValueError(
                f"config.json: layer_types {kinds} are not sliding_attention or full_attention, {layers} times"
            )
        windows = tuple(int(size) if kind == "sliding_attention" else 0 for kind in kinds)
    elif every is not None and 0 < int(every) <= WIDEST:
        windows = (*[int(size)] * (int(every) - 1), 0)[:layers]
    elif first is None:
        windows = (int(size),)
    elif layers > WIDEST:
        raise ValueError(f"num_hidden_layers is {layers}; there can be {WIDEST} at most")
    else:
        windows = tuple(int(size) if layer >= int(first) else 0 for layer in range(layers))
    return windows if any(windows) else ()


def _experts(given: dict[str, Any], layers: int) -> Experts | None:
    """`Architecture.experts` of a family that has them: in every `decoder_sparse_step`-th layer, some left out."""
    count = given.get("num_local_experts") or given.get("num_experts")
    if not count:
        return None
    if layers > WIDEST or int(count) > WIDEST:
        raise ValueError(f"num_hidden_layers is {layers}, num_experts {count}; there can be {WIDEST} at most")
    step, plain = int(given.get("decoder_sparse_step") or 1), set(given.get("mlp_only_layers") or ())
    dense = tuple(i for i in range(layers) if i in plain or (i + 1) % step)
    if len(dense) == layers:
        return None
    return Experts(
        count=int(count),
        active=int(given["num_experts_per_tok"]),
        ffn=int(given.get("moe_intermediate_size") or given["intermediate_size"]),
        shared=int(given.get("shared_expert_intermediate_size") or 0),
        normalized=bool(given["norm_topk_prob"]),
        dense=dense,
    )


def write_config(arch: Architecture) -> dict[str, Any]:
    """The config.json of an architecture, of the first family whose settings `read_architecture` reads back as it.

    Raises:
        ValueError: RoPE divisors that no rule makes, or a variant that no family which is written has, by its field.
    """
    wanted, given = _plain(arch), _given(arch)
    differing: dict[str, list[str]] = {}
    for kind, family in FAMILIES.items():
        if family.model is None:
            continue
        own = {family.name(name): value for name, value in given.items() if name in KEYS or name in family.settings}
        if arch.experts is not None and "moe_intermediate_size" not in family.settings:
            own["intermediate_size"] = arch.experts.ffn
        config = {"architectures": [family.model], "model_type": kind, **own, **family.only}
        found = _plain(read_architecture(config))
        if found == wanted:
            return config
        differing[kind] = [f.name for f in fields(arch) if getattr(found, f.name) != getattr(wanted, f.name)]
    nearest = min(differing, key=lambda kind: len(differing[kind]))
    variants = ", ".join(f"{name}={getattr(arch, name)!r}" for name in differing[nearest])
    raise ValueError(
        f"no config.json of {', '.join(differing)} says {variants}, in which the model differs from the nearest, "
        f"{nearest!r}; qjax.io.save keeps the parameters of any model"
    )


def _plain(arch: Architecture) -> Architecture:
    """The same function with what it leaves open settled: a window for each layer, no FFN where all have experts."""
    windows = tuple(arch.window(layer) for layer in range(arch.layers)) if any(arch.windows) else ()
    routed = arch.experts is not None and all(arch.routed(layer) for layer in range(arch.layers))
    return replace(arch, windows=windows, ffn=1 if routed else arch.ffn)


def _given(arch: Architecture) -> dict[str, Any]:
    """Settings of an architecture by our names; those that a family has not are left out where it is written."""
    e = arch.experts
    experts = (
        {}
        if e is None
        else {
            "num_experts": e.count,
            "num_experts_per_tok": e.active,
            "moe_intermediate_size": e.ffn,
            "shared_expert_intermediate_size": e.shared,
            "norm_topk_prob": e.normalized,
            "decoder_sparse_step": 1,
            "mlp_only_layers": list(e.dense),
        }
    )
    kinds = ["sliding_attention" if arch.window(layer) else "full_attention" for layer in range(arch.layers)]
    windows = {
        "sliding_window": max(arch.windows, default=0) or None,
        "use_sliding_window": any(arch.windows),
        "layer_types": kinds if any(arch.windows) else None,
    }
    return {
        "vocab_size": arch.vocab,
        "hidden_size": arch.width,
        "num_hidden_layers": arch.layers,
        "num_attention_heads": arch.heads,
        "num_key_value_heads": arch.kv_heads,
        "head_dim": arch.head_dim,
        "intermediate_size": arch.ffn,
        "hidden_act": {ours: theirs for theirs, ours in reversed(ACTIVATIONS.items())}[arch.activation],
        "rms_norm_eps": arch.eps,
        "rope_theta": arch.theta,
        "rope_scaling": _rope_scaling(arch),
        "tie_word_embeddings": arch.tied,
        "attention_bias": arch.o_bias,
        "mlp_bias": arch.ffn_bias,
        "max_position_embeddings": arch.context,
        **windows,
        **experts,
    }


def _rope(rope: dict[str, Any], given: dict[str, Any], rotary: int, theta: float) -> dict[str, Any]:
    """The fields of RoPE's divisors; LongRoPE's, which only families with an original context have, are two lists."""
    kind = rope.get("rope_type", rope.get("type", "default"))
    # "su" and "yarn" are what Phi-3's first configurations called it.
    if "original_max_position_embeddings" not in given or kind not in ("longrope", "su", "yarn"):
        return {"rope_factors": _rope_factors(rope, rotary, theta)}
    for key in set(rope) - {*ROPE_KEYS, "long_factor", "short_factor", "attention_factor"}:
        if rope[key] is not None:
            raise ValueError(f"RoPE scaling {kind!r}: {key} is {rope[key]!r}, a setting that is not known here")
    original = int(rope.get("original_max_position_embeddings") or given["original_max_position_embeddings"] or 0)
    if original < 2:
        raise ValueError(f"config.json: original_max_position_embeddings is {original}, no length of a text")
    ratio = float(rope.get("factor") or given["max_position_embeddings"] / original)
    scale = 1.0 if ratio <= 1 else math.sqrt(1 + math.log(ratio) / math.log(original))
    return {
        "rope_factors": tuple(map(float, rope["short_factor"])),
        "long_factors": tuple(map(float, rope["long_factor"])),
        "original_context": original,
        "rope_scale": float(rope.get("attention_factor") or scale),
    }


def _rope_factors(rope: dict[str, Any], head_dim: int, theta: float) -> tuple[float, ...] | None:
    kind = rope.get("rope_type", rope.get("type", "default"))
    for key in set(rope) - ROPE_KEYS if kind in ("default", "linear", "llama3") else ():
        if rope[key] is not None:
            raise ValueError(f"RoPE scaling {kind!r}: {key} is {rope[key]!r}, a setting that is not known here")
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
