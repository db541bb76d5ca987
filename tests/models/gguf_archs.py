"""A small decoder of every architecture of GGUF that has its own tensors or keys."""

from __future__ import annotations

import dataclasses

import numpy as np

from qjax.models import Architecture, Experts

# Numbers that float32 holds, so that what comes back is equal.
LLAMA = Architecture(
    vocab=9, width=64, layers=2, heads=4, kv_heads=2, head_dim=16, ffn=96, eps=2.0**-20, theta=500.0, context=128
)
GEMMA = dataclasses.replace(LLAMA, head_dim=32, placement="both", activation="gelu_tanh", embed_scale=8.0)
ARCHS = {
    "llama": dataclasses.replace(LLAMA, tied=False, ffn=32, experts=Experts(3, 2, 32)),
    "qwen2moe": dataclasses.replace(
        LLAMA, tied=False, qkv_bias=True, experts=Experts(3, 2, 32, shared=64, normalized=False)
    ),
    "qwen3moe": dataclasses.replace(LLAMA, head_dim=32, tied=False, qk_norm="head", experts=Experts(3, 2, 32)),
    "gemma2": dataclasses.replace(GEMMA, windows=(24, 0), score_cap=50.0, logit_cap=30.0),
    "gemma3": dataclasses.replace(
        GEMMA,
        layers=7,
        qk_norm="head",
        windows=(24, 24, 24, 24, 24, 0, 24),
        window_theta=10000.0,
        rope_factors=(8.0,) * 16,
    ),
    "phi3": dataclasses.replace(
        LLAMA,
        tied=False,
        rotary=12,
        windows=(128, 128),
        rope_factors=(1.0, 1.5, 2.0, 2.0, 2.5, 3.0),
        long_factors=(1.0, 2.0, 4.0, 8.0, 16.0, 32.0),
        original_context=32,
        rope_scale=1.25,
    ),
}


def params_of(arch):
    random = np.random.default_rng(0)
    return {path: random.normal(size=shape).astype(np.float32) for path, shape in arch.shapes.items()}
