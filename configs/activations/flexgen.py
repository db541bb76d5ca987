"""Weights and cache in four bits between the ends of each group (catalogue G22).

FlexGen with the cache in 4 bits and in float.

Paper: FlexGen (Sheng et al. 2023, arXiv:2303.06865): OPT-30B and OPT-175B with both in 4 bits lose next to nothing.

Expected: the cache costs little beside the weights.

Cost: not measured yet; an estimate from the quickstart's rows is 30 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/activations/flexgen.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("flexgen")
    config.replicates = 3
    config.extra = {"flexgen": {"cache": ("int4_g64_minimum", None)}}
    config.calibration = {"windows": 8, "length": 512, "batch": 2}
    config.claims = (("flexgen None", "flexgen int4_g64_minimum"),)
    return config
