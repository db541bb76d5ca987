"""Outlier channels outside the quantized weight: smoothing and reconstruction for W4A8.

ASER at int4 per channel with 8-bit inputs, beside SmoothQuant and plain rounding with the same inputs (catalogue F4).

Paper: ASER (Zhao et al. 2024, arXiv:2411.07762): W4A8 per channel near the float accuracy of LLaMA3-8B and
Qwen1.5-7B.

Expected: far better than rounding per channel; its low-rank term costs bits, stated in the table.

Cost: not measured yet; an estimate from the quickstart's rows is 60 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/weight_only/aser.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("aser")
    config.replicates = 3
    config.recipe = {"methods": ()}
    config.extra = {
        "w8a8": {"format": "int4_channel"},
        "smoothquant": {"format": "int4_channel", "activations": "int8"},
        "aser": {"format": "int4_channel"},
    }
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (("aser int4_channel", "w8a8 int4_channel"),)
    return config
