"""Down projections read the sharpest inputs, gains sharpen, keys and queries peak where RoPE turns slowly.

Quantities of the float model's activations over its layers, on a calibration batch of each replicate; then the model
without its outlier features (three channels reach 6 where the papers' models have up to seven), or without three random
ones (catalogue T3, T7, T10, T11).

Paper: LLM.int8 (Dettmers et al. 2022, arXiv:2208.07339) on features; Outlier Suppression (Wei et al. 2022,
arXiv:2209.13325) on gains; massive values in queries and keys, which values do not have (Jin et al. 2025,
arXiv:2502.01563).

Expected: as in the papers; SmolLM2-135M has one massive channel, and its gains may sharpen little.

Cost: 13 minutes and 4.5 GB on 2 cores with other work beside it.

    python -m experiments.run --config=configs/claims/where_outliers_sit.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("where_outliers_sit")
    config.replicates = 5
    config.update({"evaluation": {"windows": 16}})
    config.extra = {"without_features": {"by": ("outliers", "random"), "count": 3}}
    config.claims = (("without_features random", "without_features outliers"),)
    sharpest = "down projection input"
    config.places = (
        *(
            (measure, sharpest, other)
            for measure in ("kurtosis", "max/median")
            for other in ("attention input", "output projection input", "feed-forward input")
        ),
        ("max/median", "attention input", "attention input before its gain"),
        ("max/median", "feed-forward input", "feed-forward input before its gain"),
        ("largest channel", "slow keys", "fast keys"),
        ("largest channel", "slow queries", "fast queries"),
        ("largest/median channel", "keys", "values"),
        ("largest/median channel", "queries", "values"),
    )
    return config
