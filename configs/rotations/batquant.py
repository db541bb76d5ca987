"""Affine maps as wide as a block of MXFP4 against rotations of all channels, W4A4 (catalogue H5).

BATQuant, QuaRot by round to nearest in MXFP4, and the same numbers unrotated.

Paper: BATQuant (Li et al. 2026, arXiv:2603.16590): up to 96.43 % of the float accuracy of multimodal models at W4A4,
where global rotations lose most of it.

Expected: BATQuant better than both; the rotation no better than none.

Cost: not measured yet; an estimate from the quickstart's rows is 120 minutes and 6 GB on 2 cores.

    python -m experiments.run --config=configs/rotations/batquant.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("batquant")
    config.replicates = 3
    config.extra = {
        "batquant": {"steps": 60},
        "quarot": {
            "format": "mxfp4",
            "activations": "mxfp4",
            "method": "rtn",
            "cache": None,
            "clip": 1.0,
            "rotated": (True, False),
        },
    }
    config.calibration = {"windows": 8, "length": 256, "batch": 2}
    config.claims = (("batquant", "quarot mxfp4 True"), ("batquant", "quarot mxfp4 False"))
    return config
