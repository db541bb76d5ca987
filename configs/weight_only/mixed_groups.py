"""A tenth of the groups in four bits rescues a two-bit matrix.

int2_g16_affine against the same with a tenth and a fifth of the groups in 4 bits (catalogue E24).

Paper: Li et al. 2023 (arXiv:2311.16442): Llama-2-7B at 2.85 bits a weight; plain 2 bits lose more than 3 % accuracy.

Expected: better with each share; 2 bits without error feedback stay far from float on a model this small.

Cost: not measured yet; an estimate from the quickstart's rows is 60 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/weight_only/mixed_groups.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("mixed_groups")
    config.replicates = 3
    config.recipe = {"methods": ("rtn", "mixed_groups"), "format": ("int2_g16_affine",), "share": (0.1, 0.2)}
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (
        ("mixed_groups int2_g16_affine 0.1", "rtn int2_g16_affine"),
        ("mixed_groups int2_g16_affine 0.2", "mixed_groups int2_g16_affine 0.1"),
    )
    return config
