"""Outputs that the upper two bits call small keep that value: what a language model pays for fewer products.

W4A4 with every output in full, with three quarters, a half and a quarter of them (catalogue G25).

Paper: Output-Directed Dynamic Quantization (ICPP 2023): at most 0.6 points of accuracy lost by convolutional networks
with ReLU, which are trained with it.

Expected: a language model's projections have no ReLU behind them, so that every share below one costs much.

Cost: not measured yet; an estimate from the quickstart's rows is 15 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/activations/odq.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("odq")
    config.replicates = 3
    config.extra = {"odq": {"share": (1.0, 0.75, 0.5, 0.25)}}
    config.claims = (("odq 1.0", "odq 0.75"), ("odq 0.75", "odq 0.5"), ("odq 0.5", "odq 0.25"))
    return config
