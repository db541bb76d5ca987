"""The architectures of llama.cpp as data: what their tensors and metadata mean here, and which of them a decoder is.

Read from llama.cpp: what a model computes from src/models/<name>.cpp, the keys from its converter, the names from
`gguf.constants`. A file says little beyond sizes; the rest is the architecture's by its name (`KINDS`). One function
reads the metadata, one writes them, and a decoder is of that architecture whose file would be read as this decoder.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import fields
from typing import Any, NamedTuple

import numpy as np

from qjax.models.architecture import Architecture, Experts
from qjax.models.configuration import WIDEST

GLOBAL = {"token_embd.weight": "embed", "output_norm.weight": "norm/scale", "output.weight": "head"}
# GGUF name of a layer's tensor to our path below layers/<i>.
LAYER: Mapping[str, str] = {
    "attn_norm.weight": "attn_norm/scale",
    "ffn_norm.weight": "ffn_norm/scale",
    "post_attention_norm.weight": "attn_post_norm/scale",
    "post_ffw_norm.weight": "ffn_post_norm/scale",
    **{f"attn_{name}_norm.weight": f"attn/{name}_norm/scale" for name in "qk"},
    **{f"attn_{name}.weight": f"attn/{name}" for name in "qkv"},
    **{f"attn_{name}.bias": f"attn/{name}_bias" for name in "qkv"},
    "attn_output.weight": "attn/o",
    "attn_output.bias": "attn/o_bias",
    **{f"ffn_{name}.weight": f"ffn/{name}" for name in ("gate", "up", "down")},
    **{f"ffn_{name}.bias": f"ffn/{name}_bias" for name in ("gate", "up", "down")},
    **{f"ffn_{name}_exps.weight": f"ffn/experts/{name}" for name in ("gate", "up", "down")},
    **{f"ffn_{name}_shexp.weight": f"ffn/shared/{name}" for name in ("gate", "up", "down")},
    "ffn_gate_inp.weight": "ffn/router",
    "ffn_gate_inp_shexp.weight": "ffn/shared_gate",
}
# Not parameters: divisors of RoPE's frequencies, Llama 3.1's and LongRoPE's, which are part of the architecture.
FREQUENCIES, SHORT, LONG = "rope_freqs.weight", "rope_factors_short.weight", "rope_factors_long.weight"
# The bias by which a file tells that projections add one.
BIASES = {"qkv_bias": "attn/q_bias", "o_bias": "attn/o_bias", "ffn_bias": "ffn/down_bias"}


class Routing(NamedTuple):
    """How an architecture chooses and sizes its experts.

    normalized : `Experts.normalized`.
    sized      : they have a key for their width; else they are as wide as the key for plain FFNs says.
    shared     : there is one more that every token passes.
    """

    normalized: bool
    sized: bool = False
    shared: bool = False


class Kind(NamedTuple):
    """What a `general.architecture` means beyond its metadata.

    fields       : what it is by itself, as fields of `Architecture`.
    neighbours   : RoPE turns channels 2i and 2i + 1, for which the rows of q and k are reordered; else i and i + n.
    biases       : biases that it may have, as fields of `Architecture`.
    tied         : the head is the embedding; None where a file may have a head or not.
    fused        : a layer's tensors that are several of ours side by side along the outputs.
    head_size    : there is a key for the channels of a head; else they are the stream's, divided.
    partial      : RoPE may turn fewer channels than a head has.
    divisors     : tensors of RoPE's divisors that it may have; beside them there is a key for one number.
    windows      : (tokens, period), if no keys say otherwise: the window of all layers but every period-th, of all if
                   the period is 0; 0 tokens for no window. None where no layer can have one.
    window_theta : base of RoPE in layers with a window, without a key.
    caps         : keys of soft caps, with the values without a key; 0 for none.
    scaled       : an embedded token is multiplied by sqrt(width).
    by_width     : with that many layers, scores are divided by sqrt(width // heads), in place of sqrt(head_dim).
    routing      : its experts; None if it has none.
    outer_scales : where llama.cpp multiplies by the tensor scale of NVFP4's blocks: attention, FFN or experts, head.
    """

    fields: Mapping[str, Any] = {}
    neighbours: bool = False
    biases: tuple[str, ...] = ()
    tied: bool | None = None
    fused: Mapping[str, tuple[str, ...]] = {}
    head_size: bool = True
    partial: bool = False
    divisors: tuple[str, ...] = ()
    windows: tuple[int, int] | None = None
    window_theta: float | None = None
    caps: Mapping[str, float] = {}
    scaled: bool = False
    by_width: int | None = None
    routing: Routing | None = None
    outer_scales: tuple[str, ...] = ("attn", "head")


GEMMA = {"placement": "both", "activation": "gelu_tanh"}
EVERYWHERE = ("attn", "ffn", "head")
SCORES, LOGITS = "attn_logit_softcapping", "final_logit_softcapping"
KINDS: Mapping[str, Kind] = {
    "llama": Kind(
        neighbours=True,
        biases=tuple(BIASES),
        divisors=(FREQUENCIES,),
        routing=Routing(normalized=True),
        outer_scales=EVERYWHERE,
    ),
    "qwen2": Kind(biases=("qkv_bias",)),
    "qwen3": Kind({"qk_norm": "head"}, outer_scales=EVERYWHERE),
    "qwen2moe": Kind(biases=("qkv_bias",), tied=False, routing=Routing(normalized=False, sized=True, shared=True)),
    "qwen3moe": Kind({"qk_norm": "head"}, routing=Routing(normalized=True, sized=True), outer_scales=EVERYWHERE),
    "gemma2": Kind(GEMMA, tied=True, windows=(4096, 2), caps={SCORES: 50.0, LOGITS: 30.0}, scaled=True, by_width=46),
    "gemma3": Kind(
        {**GEMMA, "qk_norm": "head"},
        windows=(0, 6),
        window_theta=10000.0,
        caps={LOGITS: 0.0},
        scaled=True,
        by_width=62,
    ),
    "phi3": Kind(
        fused={
            "attn_qkv.weight": ("attn/q", "attn/k", "attn/v"),
            "attn_qkv.bias": ("attn/q_bias", "attn/k_bias", "attn/v_bias"),
            "ffn_up.weight": ("ffn/gate", "ffn/up"),
        },
        head_size=False,
        partial=True,
        divisors=(SHORT, LONG),
        windows=(0, 0),
    ),
}


def paths_of(kind: Kind, name: str) -> tuple[str, ...] | None:
    """Our paths of a file's tensor, several where they lie in it side by side; None if it is no parameter.

    >>> paths_of(KINDS["phi3"], "blk.3.ffn_up.weight"), paths_of(KINDS["llama"], "output.weight")
    (('layers/3/ffn/gate', 'layers/3/ffn/up'), ('head',))
    """
    if name in GLOBAL:
        return (GLOBAL[name],)
    block, _, rest = name.partition(".")
    layer, _, local = rest.partition(".")
    parts = kind.fused.get(local, (LAYER[local],) if local in LAYER else ())
    return tuple(f"layers/{layer}/{part}" for part in parts) if block == "blk" and parts else None


def name_of(kind: Kind, path: str) -> str | None:
    """The tensor that holds a parameter of ours; None if there is none.

    >>> name_of(KINDS["phi3"], "layers/3/ffn/gate"), name_of(KINDS["llama"], "layers/0/attn/q_bias")
    ('blk.3.ffn_up.weight', 'blk.0.attn_q.bias')
    """
    if not path.startswith("layers/"):
        return {ours: name for name, ours in GLOBAL.items()}.get(path)
    _, layer, local = path.split("/", 2)
    names = {ours: name for name, ours in LAYER.items()}
    names |= {part: name for name, parts in kind.fused.items() for part in parts}
    return f"blk.{layer}.{names[local]}" if local in names else None


def outer_scale(kind: Kind, path: str) -> str | None:
    """The tensor with the scale above those of NVFP4's blocks of a parameter of ours; None where llama.cpp has none.

    >>> outer_scale(KINDS["llama"], "layers/3/attn/q"), outer_scale(KINDS["gemma2"], "layers/3/ffn/up")
    ('blk.3.attn_q.scale', None)
    """
    part = path if path in ("embed", "head") else path.split("/")[2]
    name = name_of(kind, path)
    if name is None or part not in kind.outer_scales or path.endswith(("/router", "/shared_gate")):
        return None
    return f"{name.removesuffix('.weight')}.scale"


def neighbours(arch: Architecture) -> np.ndarray:
    """Where the channels of a head of ours lie in one whose RoPE turns 2i and 2i + 1: int [head_dim].

    >>> neighbours(Architecture(vocab=32, width=8, layers=1, heads=1, kv_heads=1, head_dim=8, ffn=16, rotary=6))
    array([0, 2, 4, 1, 3, 5, 6, 7])
    """
    turned = np.arange(arch.rotated)
    return np.concatenate([turned[::2], turned[1::2], np.arange(arch.rotated, arch.head_dim)])


def architecture_of(
    family: str,
    metadata: Mapping[str, Any],
    names: Collection[str],
    vocab: int,
    divisors: Mapping[str, tuple[float, ...]],
) -> Architecture:
    """Sizes and variants from a file's metadata.

    Args:
        family: its `general.architecture`, one of `KINDS`.
        metadata: its keys that begin with the family, without that.
        names: its tensors.
        vocab: rows of its embedding.
        divisors: those of its tensors that hold RoPE's.

    Raises:
        ValueError: a key that is missing, or a variant that the decoder does not have, naming the key.
    """
    kind = KINDS[family]

    def given(key: str, default: Any = None) -> Any:
        value = metadata.get(key, default)
        if isinstance(value, list) and key != "attention.sliding_window_pattern":
            if len(set(value)) != 1:
                raise ValueError(f"{family}.{key} is {value}: layers of different sizes are not supported")
            return value[0]
        return value

    def need(key: str) -> Any:
        if (value := given(key)) is None:
            raise ValueError(f"the GGUF file lacks the key '{family}.{key}'")
        return value

    width, heads, layers = (int(need(k)) for k in ("embedding_length", "attention.head_count", "block_count"))
    head_dim = int(given("attention.key_length", width // max(heads, 1)))
    if max(head_dim, layers) > WIDEST:
        raise ValueError(f"{family}: {layers} layers, heads of {head_dim} channels; there can be {WIDEST} at most")
    if (values := int(given("attention.value_length", head_dim))) != head_dim:
        raise ValueError(f"{family}.attention.value_length is {values}, not attention.key_length={head_dim}")
    ffn, experts = int(need("feed_forward_length")), None
    if count := int(given("expert_count", 0)):
        if kind.routing is None:
            raise ValueError(f"{family}.expert_count is {count}, but {family} models have no experts")
        active = int(need("expert_used_count"))
        experts = Experts(
            count=count,
            active=active,
            ffn=int(given("expert_feed_forward_length", 0) or ffn // max(active, 1)) if kind.routing.sized else ffn,
            shared=int(given("expert_shared_feed_forward_length", 0) or ffn) if kind.routing.shared else 0,
            normalized=kind.routing.normalized,
        )
    if (rotated := int(given("rope.dimension_count", head_dim))) != head_dim and not kind.partial:
        raise ValueError(f"{family}.rope.dimension_count is {rotated}, not all {head_dim} channels of a head")
    windows = _windows(kind.windows, given, layers) if kind.windows is not None else ()
    caps = {key: float(given(key, value)) or None for key, value in kind.caps.items()}
    window_theta = given("rope.freq_base_swa", kind.window_theta) if windows else None
    biases: dict[str, Any] = {bias: name_of(kind, f"layers/0/{BIASES[bias]}") in names for bias in kind.biases}
    return Architecture(
        **kind.fields,
        vocab=vocab,
        width=width,
        layers=layers,
        heads=heads,
        kv_heads=int(given("attention.head_count_kv", heads)),
        head_dim=head_dim,
        ffn=ffn,
        eps=float(need("attention.layer_norm_rms_epsilon")),
        theta=float(given("rope.freq_base", 10000.0)),
        rotary=None if rotated == head_dim else rotated,
        **_rope(family, given, divisors, rotated),
        tied="output.weight" not in names if kind.tied is None else kind.tied,
        **biases,
        context=int(given("context_length", 2048)),
        windows=windows,
        window_theta=None if window_theta is None else float(window_theta),
        embed_scale=width**0.5 if kind.scaled else 1.0,
        query_scale=(width // heads) ** -0.5 if layers == kind.by_width else None,
        score_cap=caps.get(SCORES),
        logit_cap=caps.get(LOGITS),
        experts=experts,
    )


def metadata_of(family: str, arch: Architecture) -> tuple[dict[str, Any], dict[str, tuple[float, ...]]]:
    """The metadata of a file and its tensors of RoPE's divisors, as `architecture_of` takes them.

    They hold what files of that family can hold: whether that is all of `arch`, `family_of` says.
    """
    kind, experts = KINDS[family], arch.experts
    keys: dict[str, Any] = {
        "vocab_size": arch.vocab,
        "block_count": arch.layers,
        "context_length": arch.context,
        "embedding_length": arch.width,
        "feed_forward_length": arch.ffn,
        "attention.head_count": arch.heads,
        "attention.head_count_kv": arch.kv_heads,
        "attention.layer_norm_rms_epsilon": float(arch.eps),
        "rope.dimension_count": arch.rotated if kind.partial else arch.head_dim,
        "rope.freq_base": float(arch.theta),
    }
    if kind.head_size:
        keys |= {"attention.key_length": arch.head_dim, "attention.value_length": arch.head_dim}
    if experts is not None and kind.routing is not None:
        keys |= {"expert_count": experts.count, "expert_used_count": experts.active}
        if kind.routing.sized:
            keys["expert_feed_forward_length"] = experts.ffn
        else:
            keys["feed_forward_length"] = experts.ffn
        if kind.routing.shared:
            keys["expert_shared_feed_forward_length"] = experts.shared
    sizes = _window_of_layers(arch)
    if kind.windows is not None and (sizes or not kind.windows[1]):
        size, usual = max(sizes, default=0), kind.windows[1]
        keys["attention.sliding_window"] = size
        periods = (p for p in (usual, *range(arch.layers + 1)) if sizes == _periodic(size, p, arch.layers))
        if (period := next(periods, usual)) != usual:
            keys["attention.sliding_window_pattern"] = period
    if kind.windows is not None and arch.window_theta is not None and arch.window_theta != kind.window_theta:
        keys["rope.freq_base_swa"] = float(arch.window_theta)
    caps = {SCORES: arch.score_cap, LOGITS: arch.logit_cap}
    keys |= {key: float(cap) for key, cap in caps.items() if cap and key in kind.caps}
    if arch.rope_scale != 1:
        keys["rope.scaling.attn_factor"] = float(arch.rope_scale)
    plain = arch.rope_factors or (1.0,) * (arch.rotated // 2)
    if LONG in kind.divisors and arch.long_factors is not None:
        keys["rope.scaling.original_context_length"] = arch.original_context
        return keys, {SHORT: plain, LONG: arch.long_factors}
    if FREQUENCIES in kind.divisors and arch.rope_factors is not None:
        return keys, {FREQUENCIES: plain}
    if arch.rope_factors is not None:
        keys |= {"rope.scaling.type": "linear", "rope.scaling.factor": float(plain[0])}
    return keys, {}


def family_of(arch: Architecture) -> str:
    """The first of `KINDS` whose file is read as this architecture, numbers rounded to float32.

    >>> sizes = dict(vocab=32, width=8, layers=2, heads=4, kv_heads=2, head_dim=4, ffn=16)
    >>> family_of(Architecture(**sizes)), family_of(Architecture(**sizes, qk_norm="head"))
    ('llama', 'qwen3')

    Raises:
        ValueError: there is none; says what the nearest cannot hold.
    """
    wanted, lacking = _comparable(arch), {}
    for family, kind in KINDS.items():
        metadata, divisors = metadata_of(family, arch)
        names = {name_of(kind, path) or "" for path in arch.shapes}
        try:
            found = architecture_of(family, metadata, names, arch.vocab, divisors)
        except ValueError:  # without its own sizes it is no decoder at all
            continue
        theirs = _comparable(found)
        odd = [field for field, value in wanted.items() if theirs[field] != value]
        if not odd:
            return family
        lacking[family] = [f"{field}={getattr(arch, field)!r} (but {getattr(found, field)!r})" for field in odd]
    fewest = min(len(odd) for odd in lacking.values())
    nearest = "; ".join(f"{family} has not {', '.join(odd)}" for family, odd in lacking.items() if len(odd) == fewest)
    raise ValueError(
        f"this decoder is no architecture of GGUF known here ({', '.join(KINDS)}): {nearest}; qjax.io.save keeps the "
        "parameters of any"
    )


def _comparable(arch: Architecture) -> dict[str, Any]:
    """Equal for architectures of the same function, as far as float32 can tell."""

    def single(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(single(part) for part in value)
        return float(np.float32(value)) if isinstance(value, float) else value

    values = {field.name: single(getattr(arch, field.name)) for field in fields(arch)}
    everywhere = arch.experts if arch.experts is not None and not arch.experts.dense else arch
    return values | {
        "ffn": everywhere.ffn,
        "rotary": arch.rotated,
        "windows": _window_of_layers(arch),
        "query_scale": single(arch.head_dim**-0.5 if arch.query_scale is None else arch.query_scale),
        "rope_factors": None if set(arch.rope_factors or ()) <= {1.0} else values["rope_factors"],
    }


def _window_of_layers(arch: Architecture) -> tuple[int, ...]:
    """Of every layer; () if none has one."""
    return tuple(arch.window(layer) for layer in range(arch.layers)) if any(arch.windows) else ()


def _periodic(size: int, period: int, layers: int) -> tuple[int, ...]:
    """The same window in all layers but every period-th; () if none has one."""
    windows = tuple(0 if period and i % period == period - 1 else size for i in range(layers))
    return windows if any(windows) else ()


def _windows(usual: tuple[int, int], given: Callable[..., Any], layers: int) -> tuple[int, ...]:
    """`Architecture.windows`, of which a file says the size, and by a number or for every layer who has one."""
    size = int(given("attention.sliding_window", usual[0]))
    who = given("attention.sliding_window_pattern", usual[1])
    if not isinstance(who, list):
        return _periodic(size, int(who), layers)
    if len(who) != layers:
        raise ValueError(f"attention.sliding_window_pattern has {len(who)} entries for {layers} layers")
    return tuple(size if has else 0 for has in who) if size and any(who) else ()


def _rope(
    family: str, given: Callable[..., Any], divisors: Mapping[str, tuple[float, ...]], rotated: int
) -> dict[str, Any]:
    """The fields of RoPE's scaling. As in llama.cpp, a factor without a type is linear scaling's."""
    scaling = given("rope.scaling.type", "linear")
    if scaling not in ("none", "linear", "longrope"):
        raise ValueError(f"RoPE scaling {scaling!r} is not supported ({family}.rope.scaling.type)")
    factor = float(given("rope.scaling.factor") or given("rope.scale_linear") or 1.0) if scaling != "none" else 1.0

    def scaled(name: str) -> tuple[float, ...]:
        return tuple(factor * divisor for divisor in divisors[name])

    found: dict[str, Any] = {"rope_scale": float(given("rope.scaling.attn_factor", 1.0))}
    if SHORT in divisors or LONG in divisors:
        original = given("rope.scaling.original_context_length")
        if original is None or not {SHORT, LONG} <= set(divisors):
            raise ValueError(f"{SHORT}, {LONG} and {family}.rope.scaling.original_context_length come together")
        return found | {"rope_factors": scaled(SHORT), "long_factors": scaled(LONG), "original_context": int(original)}
    if FREQUENCIES in divisors:
        return found | {"rope_factors": scaled(FREQUENCIES)}
    return found | {"rope_factors": None if factor == 1 else (factor,) * (rotated // 2)}
