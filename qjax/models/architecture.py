"""A decoder's architecture as data."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Architecture:
    """Sizes and variants of a Llama-family decoder: RMSNorm, RoPE, grouped-query attention, SwiGLU.

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
    # Divisor of each rotary frequency, one per pair of channels: interpolation and Llama 3.1's rule are both this.
    rope_factors: tuple[float, ...] | None = None
    tied: bool = True
    qkv_bias: bool = False
    o_bias: bool = False
    ffn_bias: bool = False
    context: int = 2048

    def __post_init__(self) -> None:
        for field in ("vocab", "width", "layers", "heads", "kv_heads", "head_dim", "ffn"):
            if getattr(self, field) < 1:
                raise ValueError(f"Architecture.{field} must be positive, got {getattr(self, field)}")
        if self.heads % self.kv_heads:
            raise ValueError(f"heads={self.heads} is no multiple of kv_heads={self.kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim={self.head_dim} must be even: RoPE turns pairs of channels")
        if self.rope_factors is not None and len(self.rope_factors) != self.head_dim // 2:
            raise ValueError(
                f"rope_factors has {len(self.rope_factors)} entries, head_dim={self.head_dim} needs half that"
            )

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Path to shape of every parameter; kernels are [in, out], the embedding [vocab, width].

        >>> arch = Architecture(vocab=32, width=8, layers=1, heads=4, kv_heads=2, head_dim=4, ffn=16, tied=False)
        >>> arch.shapes["layers/0/attn/k"], arch.shapes["head"]
        ((8, 8), (8, 32))
        """
        query, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        kernels = {
            "attn/q": (self.width, query, self.qkv_bias),
            "attn/k": (self.width, keys, self.qkv_bias),
            "attn/v": (self.width, keys, self.qkv_bias),
            "attn/o": (query, self.width, self.o_bias),
            "ffn/gate": (self.width, self.ffn, self.ffn_bias),
            "ffn/up": (self.width, self.ffn, self.ffn_bias),
            "ffn/down": (self.ffn, self.width, self.ffn_bias),
        }
        shapes: dict[str, tuple[int, ...]] = {"embed": (self.vocab, self.width)}
        for layer in range(self.layers):
            prefix = f"layers/{layer}"
            shapes[f"{prefix}/attn_norm/scale"] = shapes[f"{prefix}/ffn_norm/scale"] = (self.width,)
            for name, (rows, columns, bias) in kernels.items():
                shapes[f"{prefix}/{name}"] = (rows, columns)
                if bias:
                    shapes[f"{prefix}/{name}_bias"] = (columns,)
        shapes["norm/scale"] = (self.width,)
        if not self.tied:
            shapes["head"] = (self.width, self.vocab)
        return shapes

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
