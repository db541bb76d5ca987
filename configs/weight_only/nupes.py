"""A grid finer near zero suits weights.

Uniform integers against powers of the best exponent, at 4 and 3 bits in groups of 64 and per channel (catalogue E23).

Paper: NUPES (Yvinec et al. 2023, arXiv:2308.05600): 4-bit weights of ResNet-50 and of language models above uniform
quantization.

Expected: powers better than uniform per channel; within groups of 64 the weights are close to uniform and the gain is
small.

Cost: not measured yet; an estimate from the quickstart's rows is 90 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/weight_only/nupes.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("nupes")
    config.replicates = 3
    config.recipe = {"methods": ("rtn", "nupes"), "format": ("int4_g64", "int4_channel", "int3_g64")}
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (("nupes int4_g64", "rtn int4_g64"), ("nupes int4_channel", "rtn int4_channel"))
    return config
