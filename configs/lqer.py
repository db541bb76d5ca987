"""A low-rank term recovers part of what rounding to four bits loses.

Round-to-nearest at int4_g64 and the same with a rank-32 correction of its error, on three replicates (catalogue E1,
F1).

Paper: LQER (Zhang et al. 2024, arXiv:2402.02446), W4 at rank 32; the scaled variant (L2QER).

Expected: LQER better than RTN; it also costs more bits (rank 32 on 576-wide matrices is not small), stated in the
table.

Cost: not measured yet; an estimate from the quickstart's rows is 15 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/lqer.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("lqer")
    config.replicates = 3
    config.recipe = {"methods": ("rtn", "lqer"), "format": ("int4_g64",), "rank": 32}
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (("lqer int4_g64", "rtn int4_g64"),)
    return config
