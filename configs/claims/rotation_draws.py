"""Rotations make W4A4KV4 work; random ones differ, and a learned one is at least as good as the best.

Weights by round to nearest, activations and cache in four bits: nothing in front, ten random Hadamard rotations,
SpinQuant with a tenth of its authors' steps, DuQuant with blocks of 64 channels (catalogue H2, H3, H4).

Paper: SpinQuant (Liu et al. 2024, arXiv:2405.16406): random rotations differ by up to 13 points of accuracy, learned
ones beat all of them.

Expected: rotations far ahead of nothing; the ten draws lie apart; a tenth of the steps may not beat the best of them.

Cost: 56 minutes and 14 GB on 2 cores with other work beside it.

    python -m experiments.run --config=configs/claims/rotation_draws.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("rotation_draws")
    config.replicates = 5
    config.update({"evaluation": {"windows": 8}})
    draws = range(10)
    config.extra = {
        "quarot": {"method": "rtn", "draw": tuple(draws)},
        "weights_and_inputs": {"format": "int4_channel", "inputs": "int4", "searched": True},
        "spinquant": {"method": "rtn", "steps": 10},
        "duquant": {"block": 64, "cache": "int4_affine"},
    }
    config.calibration = {"windows": 16, "length": 256, "batch": 2}
    config.claims = (
        ("quarot 0", "weights_and_inputs int4_channel"),
        *((name, f"quarot {draw}") for name in ("spinquant", "duquant") for draw in draws),
    )
    return config
