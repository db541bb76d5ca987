"""Outliers of the weights at twice the bits, paid for by pruned neighbours (catalogue G29).

MicroScopiQ with 4-bit and with 2-bit inliers, and GPTQ with all weights in the same blocks.

Paper: MicroScopiQ (Ramachandran et al. 2024, arXiv:2411.05282): state of the art with 4- and 2-bit weights, ahead of
methods that keep outliers at the bits of the others.

Expected: MicroScopiQ better than GPTQ in the same blocks, by more at 2 bits.

Cost: not measured yet; an estimate from the quickstart's rows is 30 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/activations/microscopiq.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("microscopiq")
    config.replicates = 3
    config.extra = {
        "microscopiq": {
            "format": ("int4_g64_floor_e8m0", "int2_g64_floor_e8m0"),
            "outliers": "fp8_e4m3_g8_floor_e8m0",
        },
        "gptq": {"format": ("int4_g64_floor_e8m0", "int2_g64_floor_e8m0")},
    }
    config.calibration = {"windows": 8, "length": 512, "batch": 2}
    config.claims = (
        ("microscopiq int4_g64_floor_e8m0", "gptq int4_g64_floor_e8m0"),
        ("microscopiq int2_g64_floor_e8m0", "gptq int2_g64_floor_e8m0"),
    )
    return config
