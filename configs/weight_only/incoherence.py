"""Rotations and frames in front of a two-bit grid.

GPTQ at int2_tensor and int2 beside QuIP (Kronecker and Hadamard) and FrameQuant at three redundancies (catalogue E3,
E15, E22).

Papers: QuIP (Chee et al. 2023, arXiv:2307.13304) and FrameQuant (Adepu et al. 2024, arXiv:2403.06082; the authors'
README), OPT-125M at two bits, WikiText-2: GPTQ 5.7e3, QuIP 913, FrameQuant 346 at redundancy 1.0 and 131 at 1.1, float
27.7.

Expected: GPTQ useless at one scale a matrix, QuIP far better, FrameQuant better with each step of redundancy (and the
bits that it costs, which the table states).

Cost: not measured yet; an estimate from the quickstart's rows is two hours and 4 GB on 2 cores.

    python -m experiments.run --config=configs/weight_only/incoherence.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("incoherence")
    config.replicates = 3
    config.recipe = {"methods": ("gptq",), "format": ("int2_tensor", "int2")}
    config.extra = {
        "quip": {"format": "int2_tensor", "incoherence": ("kronecker", "hadamard")},
        "framequant": {"format": "int2", "redundancy": (1.0, 1.125, 1.25)},
    }
    config.calibration = {"windows": 32, "length": 512, "batch": 4}
    config.claims = (
        ("quip int2_tensor kronecker", "gptq int2_tensor"),
        ("framequant int2 1.125", "framequant int2 1.0"),
    )
    return config
