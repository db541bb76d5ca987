"""An architecture as data: a decoder's, or an encoder's."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from qjax.models.encoding import Encoding

CHOICES = {
    "norm": ("rms", "layer"),
    "placement": ("pre", "post", "both", "sum"),
    "qk_norm": (None, "head", "width"),
    "activation": ("silu", "gelu", "gelu_tanh", "relu"),
}


@dataclass(frozen=True)
class Experts:
    """FFNs of which every token passes a few, in the layers of a decoder that are not `dense`.

    Args:
        count, active: how many a layer has, and how many of them a token passes.
        ffn: channels of each.
        shared: channels of one more FFN, which every token passes through a gate of its own; 0 if there is none.
        normalized: the weights of a token's experts sum to one; else they are the router's softmax over all experts.
        dense: layers with the decoder's plain FFN instead.

    Raises:
        ValueError: sizes that no layer has.
    """

    count: int
    active: int
    ffn: int
    shared: int = 0
    normalized: bool = True
    dense: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= self.active <= self.count or self.ffn < 1 or self.shared < 0:
            raise ValueError(
                f"Experts has count={self.count}, active={self.active}, ffn={self.ffn}, shared={self.shared}; a token "
                "passes at least one expert and at most all, each with at least one channel"
            )


@dataclass(frozen=True)
class Architecture:
    """Sizes and variants of a model; as they stand, a Llama: RMSNorm, RoPE, grouped-query attention, SwiGLU.

    Args:
        vocab, width, layers, heads, kv_heads, head_dim, ffn: sizes; `width` is that of the residual stream, and `vocab`
            is 0 where tokens are patches of pictures.
        eps: what a norm adds under its root.
        theta: base of RoPE's frequencies.
        rope_factors: divisor of each frequency, one per pair of channels: interpolation and Llama 3.1's rule are this.
            LongRoPE has others for long contexts, `long_factors`.
        tied: the head is the embedding.
        qkv_bias, o_bias, ffn_bias: which projections add one.
        context: tokens the model was made for; rows of the table where positions are learned.
        norm: "rms", or "layer" with a mean and a bias.
        placement: norms in front of attention and FFN ("pre"), on what they add to the stream ("post"), or "both"; or
            on each sum, the embedding among them, so that the stream itself is normalized ("sum", as in BERT).
        qk_norm: queries and keys normalized before RoPE, by "head" or over the "width" of all heads.
        activation: "silu", "gelu", "gelu_tanh" or "relu".
        gated: activation(gate) * up; else activation(up).
        parallel: attention and FFN read the same stream, and both add to it.
        rotary: channels of a head that RoPE turns, the first ones; None is all, 0 none.
        learned_positions: a table of positions is added to the embedding.
        windows: how many latest tokens a layer attends to, itself included, 0 for all: layer i has
            `windows[i % len(windows)]`; empty where every layer sees everything.
        window_theta: base of RoPE in layers with a window, whose frequencies have no divisors; None for no difference.
        embed_scale: factor of an embedded token.
        query_scale: factor of the scores; None is 1 / sqrt(head_dim).
        score_cap, logit_cap: c in c tanh(x / c), of attention's scores and of the logits.
        long_factors, original_context: in contexts of more than `original_context` tokens the frequencies have the
            divisors `long_factors`; None where they are the same at any length.
        rope_scale: factor of the channels that RoPE turns.
        experts: FFNs among which each token's are chosen; None for one FFN a layer.
        encoding: what makes it an encoder; None for a decoder.

    Raises:
        ValueError: values that no model has, by the field's name.

    >>> Architecture(vocab=32, width=8, layers=2, heads=4, kv_heads=2, head_dim=4, ffn=16).parameters
    1832
    """

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    eps: float = 1e-5
    theta: float = 10000.0
    rope_factors: tuple[float, ...] | None = None
    tied: bool = True
    qkv_bias: bool = False
    o_bias: bool = False
    ffn_bias: bool = False
    context: int = 2048
    norm: str = "rms"
    placement: str = "pre"
    qk_norm: str | None = None
    activation: str = "silu"
    gated: bool = True
    parallel: bool = False
    rotary: int | None = None
    learned_positions: bool = False
    windows: tuple[int, ...] = ()
    window_theta: float | None = None
    embed_scale: float = 1.0
    query_scale: float | None = None
    score_cap: float | None = None
    logit_cap: float | None = None
    long_factors: tuple[float, ...] | None = None
    original_context: int | None = None
    rope_scale: float = 1.0
    experts: Experts | None = None
    encoding: Encoding | None = None

    def __post_init__(self) -> None:
        if self.vocab < 0 or (self.vocab == 0) != self.pictures:
            raise ValueError(f"Architecture.vocab must be positive, and 0 for patches of pictures; got {self.vocab}")
        for field in ("width", "layers", "heads", "kv_heads", "head_dim", "ffn", "context"):
            if getattr(self, field) < 1:
                raise ValueError(f"Architecture.{field} must be positive, got {getattr(self, field)}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is no multiple of kv_heads={self.kv_heads}")
        for field, known in CHOICES.items():
            if getattr(self, field) not in known:
                raise ValueError(f"Architecture.{field} must be one of {known}, got {getattr(self, field)!r}")
        if self.rotated % 2 or not 0 <= self.rotated <= self.head_dim:
            raise ValueError(
                f"RoPE turns pairs of channels, not {self.rotated} of head_dim={self.head_dim}; set rotary"
            )
        for field in ("rope_factors", "long_factors"):
            factors = getattr(self, field)
            if factors is not None and len(factors) != self.rotated // 2:
                raise ValueError(
                    f"{field} has {len(factors)} entries, {self.rotated} turned channels need half as many"
                )
        if (self.long_factors is None) != (self.original_context is None):
            raise ValueError(
                f"long_factors={self.long_factors} and original_context={self.original_context} come together: which "
                "divisors, and from which length on"
            )
        if min(self.windows, default=0) < 0 or len(self.windows) > self.layers:
            raise ValueError(
                f"windows={self.windows} must be at most one number for each of {self.layers} layers, >= 0"
            )
        if self.window_theta is not None and not any(self.windows):
            raise ValueError(f"window_theta={self.window_theta} is for layers with a window, and none has one")
        self._check_encoding()

    def _check_encoding(self) -> None:
        """What only decoders have, and what only encoders have."""
        if self.encoding is None:
            if self.placement == "sum":
                raise ValueError('placement="sum" is an encoder\'s; set encoding')
            return
        if any(self.windows) or not self.tied or self.logit_cap is not None:
            raise ValueError(
                f"windows={self.windows}, tied={self.tied}, logit_cap={self.logit_cap} are for decoders; an encoder's "
                "head is encoding.head"
            )
        patches = self.encoding.patches
        if patches is not None and (not self.learned_positions or self.context != patches.count + 1):
            raise ValueError(
                f"context={self.context} must be the {patches.count} patches of a picture and one token more, with "
                "learned_positions"
            )

    @property
    def pictures(self) -> bool:
        """Whether tokens are patches of pictures."""
        return self.encoding is not None and self.encoding.patches is not None

    @property
    def rotated(self) -> int:
        """How many channels of a head RoPE turns."""
        return self.head_dim if self.rotary is None else self.rotary

    def window(self, layer: int) -> int:
        """How many latest tokens a layer attends to; 0 for all."""
        return self.windows[layer % len(self.windows)] if self.windows else 0

    def routed(self, layer: int) -> bool:
        """Whether a layer's FFN is a choice among experts."""
        return self.experts is not None and layer not in self.experts.dense

    @property
    def beyond_llama(self) -> dict[str, Any]:
        """Fields that a Llama has not, where they differ from what it does: {} if a Llama's writer can write this.

        >>> sizes = dict(vocab=32, width=8, layers=2, heads=4, kv_heads=2, head_dim=4, ffn=16)
        >>> Architecture(**sizes, windows=(4, 0)).beyond_llama
        {'windows': (4, 0)}
        """
        own = fields(self)[[field.name for field in fields(self)].index("norm") :]
        return {f.name: getattr(self, f.name) for f in own if getattr(self, f.name) != f.default}

    @property
    def norms(self) -> tuple[str, ...]:
        """Names of a layer's norms between its parts and the stream."""
        before, after = ("attn_norm", "ffn_norm"), ("attn_post_norm", "ffn_post_norm")
        sums = ("attn_sum_norm", "ffn_sum_norm")
        return {"pre": before, "post": after, "both": (*before, *after), "sum": sums}[self.placement]

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Path to shape of every parameter: kernels [in, out] or [experts, in, out], the embedding [vocab, width].

        >>> arch = Architecture(vocab=32, width=8, layers=1, heads=4, kv_heads=2, head_dim=4, ffn=16, tied=False)
        >>> arch.shapes["layers/0/attn/k"], arch.shapes["head"]
        ((8, 8), (8, 32))
        """
        query, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = {
            "attn/q": ((self.width, query), self.qkv_bias),
            "attn/k": ((self.width, keys), self.qkv_bias),
            "attn/v": ((self.width, keys), self.qkv_bias),
            "attn/o": ((query, self.width), self.o_bias),
        }
        norms = dict.fromkeys(self.norms, self.width)
        if self.qk_norm is not None:
            sizes = (query, keys) if self.qk_norm == "width" else (self.head_dim, self.head_dim)
            norms |= {"attn/q_norm": sizes[0], "attn/k_norm": sizes[1]}
        parts = ("scale",) if self.norm == "rms" else ("scale", "bias")
        shapes = self._inputs()
        if self.placement == "sum":
            shapes |= {f"embed_norm/{part}": (self.width,) for part in parts}
        for layer in range(self.layers):
            prefix = f"layers/{layer}"
            for name, size in norms.items():
                shapes |= {f"{prefix}/{name}/{part}": (size,) for part in parts}
            for name, (shape, bias) in (attention | self._ffn(layer)).items():
                shapes[f"{prefix}/{name}"] = shape
                if bias:
                    shapes[f"{prefix}/{name}_bias"] = shape[-1:]
        if self.placement != "sum":
            shapes |= {f"norm/{part}": (self.width,) for part in parts}
        return shapes | self._head(parts)

    def _inputs(self) -> dict[str, tuple[int, ...]]:
        """Shapes of what makes the stream of words or of patches."""
        shapes: dict[str, tuple[int, ...]] = {}
        encoding = self.encoding
        if encoding is not None and encoding.patches is not None:
            shapes |= {"patches": (encoding.patches.numbers, self.width), "patches_bias": (self.width,)}
            shapes["first"] = (1, self.width)
        else:
            shapes["embed"] = (self.vocab, self.width)
        if self.learned_positions:
            shapes["positions"] = (self.context, self.width)
        if encoding is not None and encoding.types:
            shapes["types"] = (encoding.types, self.width)
        return shapes

    def _head(self, parts: tuple[str, ...]) -> dict[str, tuple[int, ...]]:
        """Shapes of what reads the last states."""
        if self.encoding is None:
            return {} if self.tied else {"head": (self.width, self.vocab)}
        head, square = self.encoding.head, (self.width, self.width)
        if head == "states":
            return {}
        if head == "words":
            norm = {f"transform_norm/{part}": (self.width,) for part in parts}
            return {"transform": square, "transform_bias": square[1:], **norm, "words_bias": (self.vocab,)}
        pooler = {"pooler": square, "pooler_bias": square[1:]} if head == "pooled" else {}
        return {**pooler, "head": (self.width, self.encoding.classes), "head_bias": (self.encoding.classes,)}

    def _ffn(self, layer: int) -> dict[str, tuple[tuple[int, ...], bool]]:
        """Shapes of the kernels of a layer's FFN, or of its experts, and whether each has a bias."""

        def gated(
            prefix: str, channels: int, bias: bool = False, *lead: int
        ) -> dict[str, tuple[tuple[int, ...], bool]]:
            inner = {f"{prefix}/{name}": ((*lead, self.width, channels), bias) for name in ("gate", "up")}
            if not self.gated:
                del inner[f"{prefix}/gate"]
            return inner | {f"{prefix}/down": ((*lead, channels, self.width), bias)}

        if self.experts is None or not self.routed(layer):
            return gated("ffn", self.ffn, self.ffn_bias)
        e = self.experts
        kernels = {"ffn/router": ((self.width, e.count), False), **gated("ffn/experts", e.ffn, False, e.count)}
        if e.shared:
            kernels |= {**gated("ffn/shared", e.shared), "ffn/shared_gate": ((self.width, 1), False)}
        return kernels

    @property
    def parameters(self) -> int:
        """How many numbers the model has; a tied embedding counts once."""
        return sum(math.prod(shape) for shape in self.shapes.values())


def llama3_rope_factors(
    head_dim: int, theta: float, factor: float, low: float, high: float, original: int
) -> tuple[float, ...]:
    """Frequency divisors of Llama 3.1: long waves by `factor`, short ones by 1, a smooth passage between.

    Args:
        head_dim: channels of a head.
        theta: base of the frequencies.
        factor: divisor of the longest waves.
        low: `low_freq_factor` of the model's configuration.
        high: `high_freq_factor` of it.
        original: context length before the extension.

    >>> llama3_rope_factors(4, 10000.0, 8.0, 1.0, 4.0, 64)
    (1.0, 8.0)
    """
    divisors = []
    for pair in range(head_dim // 2):
        turns = original * theta ** (-2.0 * pair / head_dim) / (2.0 * math.pi)
        smooth = min(max((turns - low) / (high - low), 0.0), 1.0)
        divisors.append(1.0 / ((1.0 - smooth) / factor + smooth))
    return tuple(divisors)
