"""Outlier channels rounded twice lift NVFP4 towards MXFP8.

NVFP4 on both sides with the largest 0, 16, 32 or 64 input channels of every matrix repeated, beside MXFP8 on both
sides (catalogue G19).

Paper: ARCQuant (Meng et al. 2026, arXiv:2601.07475): the worst error of an NVFP4 channel repeated is that of MXFP8.

Expected: the error falls with the number of channels and stays above MXFP8's, which has twice the bits everywhere.

Cost: 14 minutes and 6 GB on 2 cores with other work beside it.

    python -m experiments.run --config=configs/claims/residual_channels.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("residual_channels")
    config.replicates = 5
    config.update({"evaluation": {"windows": 8}})
    config.extra = {
        "arcquant": {"channels": (0, 16, 32, 64)},
        "weights_and_inputs": {"format": "mxfp8_e4m3"},
    }
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (
        ("arcquant 16", "arcquant 0"),
        ("arcquant 32", "arcquant 16"),
        ("arcquant 64", "arcquant 32"),
        ("weights_and_inputs mxfp8_e4m3", "arcquant 64"),
    )
    return config
