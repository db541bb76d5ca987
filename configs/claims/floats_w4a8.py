"""Floats beat integers on both sides of W4A8 with a scale a channel.

Weights in E2M1 or int4, inputs in E4M3 or int8, one scale for each output channel and token (catalogue G2, A13).

Paper: ZeroQuant-FP (Wu et al. 2023, arXiv:2307.09782): FP8 inputs ahead of INT8, more so in larger models, FP4
weights equal to INT4 or ahead.

Expected: the float ahead on either side.

Cost: 6 minutes and 5.5 GB on 2 cores with other work beside it.

    python -m experiments.run --config=configs/claims/floats_w4a8.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("floats_w4a8")
    config.replicates = 5
    config.update({"evaluation": {"windows": 8}})
    name = "weights_and_inputs"
    config.extra = {name: {"format": ("fp4_e2m1", "int4"), "inputs": ("fp8_e4m3", "int8")}}
    config.claims = (
        (f"{name} fp4_e2m1 fp8_e4m3", f"{name} fp4_e2m1 int8"),
        (f"{name} int4 fp8_e4m3", f"{name} int4 int8"),
        (f"{name} fp4_e2m1 fp8_e4m3", f"{name} int4 fp8_e4m3"),
        (f"{name} fp4_e2m1 int8", f"{name} int4 int8"),
    )
    return config
