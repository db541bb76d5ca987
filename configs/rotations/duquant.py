"""Outliers balanced by rotations found on the data, against random Hadamard rotations and smoothing alone, at W4A4.

DuQuant with blocks of 64 channels (576 is no multiple of the authors' 128), QuaRot by round to nearest without its
4-bit cache, and the same numbers unrotated (catalogue H4).

Paper: DuQuant (Lin et al. 2024, arXiv:2406.01721): at W4A4 ahead of QuaRot by round to nearest and far ahead of
SmoothQuant on the Llama models.

Expected: DuQuant better than QuaRot by round to nearest, both far better than no rotation.

Cost: not measured yet; an estimate from the quickstart's rows is 60 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/rotations/duquant.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("duquant")
    config.replicates = 3
    config.extra = {
        "duquant": {"block": 64},
        "quarot": {"method": "rtn", "cache": None, "rotated": (True, False)},
    }
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (("duquant", "quarot True"), ("quarot True", "quarot False"))
    return config
