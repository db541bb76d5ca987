"""Rounding and low rank in turns beat one after the other.

NF4 with rank 16 in one step and in five (catalogue P2, F1).

Paper: LoftQ (Li et al. 2023, arXiv:2310.08659): Llama-2-7B fine-tuned on WikiText-2 5.24 at 4 bits from 5.08 in 16;
the gain before fine-tuning is the smaller error of the weights.

Expected: five steps no worse than one by a small margin: at 4 bits the first step leaves little.

Cost: not measured yet; an estimate from the quickstart's rows is 40 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/weight_only/loftq.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("loftq")
    config.replicates = 3
    config.recipe = {"methods": ("loftq",), "format": ("nf4_g64",), "steps": (1, 5)}
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (("loftq nf4_g64 5", "loftq nf4_g64 1"),)
    return config
