"""Eight bits with one scale a tensor: floats against integers (catalogue G21).

E4M3 and INT8 on both sides, one scale for each weight and each activation.

Paper: FP8-BERT (Li et al. 2023, arXiv:2312.05725): FP8 loses far less than INT8 in BERT after training.

Expected: the floats better: SmolLM2-135M has activations up to 25,900 in one channel.

Cost: not measured yet; an estimate from the quickstart's rows is 30 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/activations/fp8_bert.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("fp8_bert")
    config.replicates = 3
    config.extra = {"fp8_bert": {"static": False}, "w8a8": {"format": "int8_tensor", "granularity": "tensor"}}
    config.calibration = {"windows": 8, "length": 512, "batch": 2}
    config.claims = (("fp8_bert", "w8a8 int8_tensor"),)
    return config
