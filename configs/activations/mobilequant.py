"""Static 8-bit activations with one scale each, learned end to end, under 4-bit and 8-bit weights (catalogue G20).

MobileQuant with 64 of the authors' 61440 steps and without a step; without one it is SmoothQuant's rule with shares of
sigmoid(4) of the weights' ranges.

Paper: MobileQuant (Tan et al. 2024, arXiv:2408.13933), the authors' table: TinyLlama-1.1B has a perplexity of 15.5 on
WikiText with W8A8 and 17.1 with W4A8.

Expected: W8A8 better than W4A8, and 64 steps better than none.

Cost: not measured yet; an estimate from the quickstart's rows is 90 minutes and 8 GB on 2 cores.

    python -m experiments.run --config=configs/activations/mobilequant.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("mobilequant")
    config.replicates = 3
    config.extra = {"mobilequant": {"format": ("int4_affine", "int8_tensor_affine"), "steps": (64, 0)}}
    config.calibration = {"windows": 8, "length": 256, "batch": 2}
    config.claims = (
        ("mobilequant int8_tensor_affine 64", "mobilequant int4_affine 64"),
        ("mobilequant int4_affine 64", "mobilequant int4_affine 0"),
    )
    return config
