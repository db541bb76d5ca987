"""Rotations learned by Cayley SGD against random ones, W4A4KV4 by round to nearest (catalogue H3).

SpinQuant with a tenth of the authors' steps and QuaRot on the same weights, activations with a zero point a token.

Paper: SpinQuant (Liu et al. 2024, arXiv:2405.16406): random rotations differ among each other by up to 13 points of
zero-shot accuracy, and learned ones beat the best of them.

Expected: SpinQuant at least as good as QuaRot.

Cost: not measured yet; an estimate from the quickstart's rows is 120 minutes and 6 GB on 2 cores.

    python -m experiments.run --config=configs/rotations/spinquant.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("spinquant")
    config.replicates = 3
    config.extra = {
        "spinquant": {"method": "rtn", "steps": 10},
        "quarot": {"method": "rtn", "activations": "int4_affine", "clip": 1.0},
    }
    config.calibration = {"windows": 8, "length": 256, "batch": 2}
    config.claims = (("spinquant", "quarot"),)
    return config
