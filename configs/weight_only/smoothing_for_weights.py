"""Smoothing helps weight-only rounding, by search or by descent.

RTN, SmoothQuant+ (one alpha for the model) and TEQ (a learned scale a channel) at int4_g64 (catalogue E17, E18).

Paper: SmoothQuant+ (Pan et al. 2023, arXiv:2312.03788): Code Llama-34B at 4 bits without loss of HumanEval accuracy;
TEQ (Cheng et al. 2023, arXiv:2310.10944): on par with the best 3- and 4-bit weight-only methods of its time.

Expected: both better than RTN.

Cost: not measured yet; an estimate from the quickstart's rows is 150 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/weight_only/smoothing_for_weights.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("smoothing_for_weights")
    config.replicates = 3
    config.recipe = {"methods": ("rtn", "smoothquant_plus", "teq"), "format": ("int4_g64",)}
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (("smoothquant_plus int4_g64", "rtn int4_g64"), ("teq int4_g64", "rtn int4_g64"))
    return config
