"""Learned rounding with each number of a block's output weighted by what depends on it (catalogue D4, D9).

BRECQ by the plain squared error and by the squared gradient of the loss; EPTQ, which learns windows of two blocks on
what both put out, weighted by the slopes of the model's output and not by labels.

Papers: BRECQ (Li et al. 2021, arXiv:2102.05426): ResNet-18 at 2-bit weights 66.30 of 71.08; EPTQ (Gordon et al. 2023,
arXiv:2309.11531).

Expected: the weighted losses at least as good as the plain one.

Cost: not measured yet; steps are cut to what 2 cores can do, an estimate is 2 hours and 6 GB.

    python -m experiments.run --config=configs/weight_only/weighted_losses.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("weighted_losses")
    config.replicates = 3
    config.recipe = {
        "methods": ("brecq", "eptq"),
        "format": ("int3_g64_affine",),
        "steps": 200,
        "fisher": (False, True),
        "window": 2,
    }
    config.calibration = {"windows": 16, "length": 256, "batch": 2}
    config.claims = (
        ("brecq True int3_g64_affine", "brecq False int3_g64_affine"),
        ("eptq int3_g64_affine", "brecq False int3_g64_affine"),
    )
    return config
