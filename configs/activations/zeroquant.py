"""Four-bit weights and eight-bit activations: distilled integers, and floats (catalogue G1, G2).

ZeroQuant with and without its distillation, and ZeroQuant-FP with and without its low-rank correction.

Paper: ZeroQuant (Yao et al. 2022, arXiv:2206.01861): W4/8A8 of GPT-3-350M needs the distillation of layers;
ZeroQuant-FP (Wu et al. 2023, arXiv:2307.09782): FP8 activations and FP4 weights ahead of INT8 and INT4.

Expected: distilled better than rounded; the correction helps.

Cost: not measured yet; an estimate from the quickstart's rows is 90 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/activations/zeroquant.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("zeroquant")
    config.replicates = 3
    config.extra = {
        "zeroquant": {"steps": 100},
        "w8a8": {"format": "int4_g64"},
        "zeroquant_fp": {"format": "fp4_e2m1_g64_rceil_e8m0", "rank": (8, None)},
    }
    config.calibration = {"windows": 8, "length": 256, "batch": 2}
    config.claims = (
        ("zeroquant", "w8a8 int4_g64"),
        ("zeroquant_fp fp4_e2m1_g64_rceil_e8m0 8", "zeroquant_fp fp4_e2m1_g64_rceil_e8m0 None"),
    )
    return config
