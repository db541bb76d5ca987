"""8-bit weights and activations under a scale of each token, or under CrossQuant's rows and columns (catalogue G13).

Five replicates of SmolLM2-135M, whose activations have channels with outliers.

Paper: CrossQuant (Liu et al. 2024, arXiv:2410.07505).

Expected: CrossQuant loses less than a scale a token at 8 bits.

Cost: not measured yet; an estimate from the quickstart's rows is 20 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/crossquant.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("crossquant")
    config.replicates = 5
    config.extra = {"w8a8": {"granularity": "token"}, "crossquant": {"bits": (8, 4)}}
    config.claims = (("crossquant 8", "w8a8"),)
    return config
