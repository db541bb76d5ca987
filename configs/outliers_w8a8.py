"""Massive activations: one scale per tensor fails where one per token holds, and smoothing repairs part of it.

W8A8 with dynamic activation scales per token and per tensor, and SmoothQuant in front of both, on three replicates
(catalogue G5).

Papers: ZeroQuant (Yao et al. 2022, arXiv:2206.01861); SmoothQuant (Xiao et al. 2022, arXiv:2211.10438), whose
tables set W8A8 with and without smoothing beside float on OPT-175B: per tensor collapses, smoothed it holds.

Expected: per token better than per tensor; SmoothQuant per tensor better than plain per tensor. SmolLM2-135M has
activations up to 25,900 in one channel.

Cost: not measured yet; an estimate from the quickstart's rows is 20 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/outliers_w8a8.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("outliers_w8a8")
    config.replicates = 3
    config.extra = {
        "w8a8": {"granularity": ("token", "tensor")},
        "smoothquant": {"activations": ("int8", "int8_tensor")},
    }
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (
        ("w8a8 token", "w8a8 tensor"),
        ("smoothquant int8_tensor", "w8a8 tensor"),
    )
    config.pictures = True
    return config
