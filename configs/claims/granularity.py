"""Finer granularity lowers the error, at the price of more scales.

Weights alone, rounded to nearest at 4 and 3 bits with one scale for the matrix, an output channel, or groups of 64,
32 and 16 (catalogue C1, C2, C6).

Papers: Gholami et al. 2021 (arXiv:2103.13630), section III; ZeroQuant-V2 (arXiv:2303.08302).

Expected: every step finer is better in perplexity; per bit it need not be.

Cost: not measured yet; an estimate from one row of about a minute is 50 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/claims/granularity.py
"""

from __future__ import annotations

import itertools

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("granularity")
    config.replicates = 5
    config.update({"evaluation": {"windows": 16}})
    steps = ("tensor", "channel", "g64", "g32", "g16")
    config.recipe = {"methods": ("rtn",), "format": tuple(f"int{bits}_{step}" for bits in (4, 3) for step in steps)}
    config.claims = tuple(
        (f"rtn int{bits}_{fine}", f"rtn int{bits}_{coarse}")
        for bits in (4, 3)
        for coarse, fine in itertools.pairwise(steps)
    )
    return config
