"""Static 6-bit activations with the norms' gains moved away and ranges that give up tokens (catalogue G6).

With and without the migration of gains, beside the extremes as ranges.

Paper: Outlier Suppression (Wei et al. 2022, arXiv:2209.13325): RoBERTa at 6 bits without training in reach of float,
where ranges by the extremes lose tens of points.

Expected: both parts help: with the gains moved better than without, and clipped better than the extremes.

Cost: not measured yet; an estimate from the quickstart's rows is 45 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/activations/outlier_suppression.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("outlier_suppression")
    config.replicates = 3
    config.extra = {
        "outlier_suppression": {"migrated": (True, False)},
        "outliertune": {"activations": "int6_tensor_affine", "shift": False},
    }
    config.calibration = {"windows": 8, "length": 512, "batch": 2}
    config.claims = (("outlier_suppression True", "outlier_suppression False"),)
    return config
