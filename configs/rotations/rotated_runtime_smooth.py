"""Channels smoothed at run time behind a rotation, W4A4KV4 by round to nearest (catalogue H6).

Runtime Smooth with and without the rotation, and QuaRot.

Paper: Rotated Runtime Smooth (Yi et al. 2024, arXiv:2409.20361): WikiText-2 perplexity at INT4 from 57.33 (the best
before it, on a 70B model) to 6.66.

Expected: the rotated better than the smoothed alone, and at least as good as QuaRot.

Cost: not measured yet; an estimate from the quickstart's rows is 90 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/rotations/rotated_runtime_smooth.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("rotated_runtime_smooth")
    config.replicates = 3
    config.extra = {
        "rotated_runtime_smooth": {"method": "rtn", "group": 64, "rotated": (True, False)},
        "quarot": {"method": "rtn", "clip": 1.0},
    }
    config.calibration = {"windows": 8, "length": 512, "batch": 2}
    config.claims = (
        ("rotated_runtime_smooth True", "rotated_runtime_smooth False"),
        ("rotated_runtime_smooth True", "quarot"),
    )
    return config
