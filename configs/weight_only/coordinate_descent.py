"""Coordinate descent refines what error feedback leaves.

GPTQ, QuantEase from the weights and from GPTQ's result, QuantEase with 1 % outliers, and alternating least squares, at
int3_g64_affine (catalogue E3, E6).

Paper: QuantEase (Behdin et al. 2023, arXiv:2309.01885; the authors' README), OPT-1.3B, 3 bits a channel, WikiText-2:
21.30, with 1 % unstructured outliers 16.25, float 14.62.

Expected: QuantEase below GPTQ by a few per cent, much below with outliers, which cost bits of their own.

Cost: not measured yet; an estimate from the quickstart's rows is two hours and 4 GB on 2 cores.

    python -m experiments.run --config=configs/weight_only/coordinate_descent.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("coordinate_descent")
    config.replicates = 3
    config.recipe = {"methods": ("gptq", "alternating"), "format": ("int3_g64_affine",), "order": "activation"}
    config.extra = {
        "quantease": {"format": "int3_g64_affine", "start": ("weights", "gptq"), "outliers": (0.0, 0.01)},
    }
    config.calibration = {"windows": 32, "length": 512, "batch": 4}
    config.claims = (
        ("quantease int3_g64_affine 0.0 weights", "gptq int3_g64_affine"),
        ("quantease int3_g64_affine 0.0 gptq", "gptq int3_g64_affine"),
        ("quantease int3_g64_affine 0.01 weights", "quantease int3_g64_affine 0.0 weights"),
        ("alternating int3_g64_affine", "gptq int3_g64_affine"),
    )
    return config
