"""Smoothing helps where outliers are ordinary, less where they are massive.

SmoothQuant at W8A8 with one scale for the tensor and a scale a token, strengths 0 to 0.85 (catalogue G5, I10).

Papers: SmoothQuant (arXiv:2211.10438): strengths of 0.4 to 0.6 are best; PrefixQuant (arXiv:2410.05265) and massive
activations (arXiv:2402.17762) on what it cannot move.

Expected: 0.5 better than 0 for both; per tensor it stays worse than a scale a token without smoothing.

Cost: 23 minutes and 5.5 GB on 2 cores with other work beside it.

    python -m experiments.run --config=configs/claims/smoothing.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("smoothing")
    config.replicates = 5
    config.update({"calibration": {"windows": 8}, "evaluation": {"windows": 8}})
    config.extra = {
        "smoothquant": {"alpha": (0.5, 0.85), "activations": ("int8", "int8_tensor")},
        "w8a8": {"granularity": ("token", "tensor")},
    }
    config.claims = (
        ("smoothquant int8_tensor 0.5", "w8a8 tensor"),
        ("smoothquant int8 0.5", "w8a8 token"),
        ("smoothquant int8_tensor 0.5", "smoothquant int8_tensor 0.85"),
        ("w8a8 token", "smoothquant int8_tensor 0.5"),
    )
    return config
