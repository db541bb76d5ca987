"""Learned affine maps against random rotations, W4A4KV4 by round to nearest.

FlatQuant with an eighth of the authors' steps and QuaRot on the same formats.

Paper: FlatQuant (Sun et al. 2024, arXiv:2410.09426): at W4A4KV4 ahead of QuaRot and of SpinQuant, and
near the accuracy of the float models.

Expected: FlatQuant better than QuaRot.

Cost: not measured yet; an estimate from the quickstart's rows is 120 minutes and 6 GB on 2 cores.

    python -m experiments.run --config=configs/rotations/flatquant.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("flatquant")
    config.replicates = 3
    config.extra = {"flatquant": {"steps": 60}, "quarot": {"method": "rtn"}}
    config.calibration = {"windows": 8, "length": 256, "batch": 2}
    config.claims = (("flatquant", "quarot"),)
    return config
