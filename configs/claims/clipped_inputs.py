"""Cutting off the outliers of activations ruins a language model, however few they are.

Inputs at 8 bits a token with float weights, whose ranges keep all, 99.9, 99 or 95 per cent of a token's values
(catalogue T44, B3).

Papers: SmoothQuant (arXiv:2211.10438) and LLM.int8 (arXiv:2208.07339) on what outliers carry; Wei et al. 2022
(arXiv:2209.13325) on which of them may be clipped.

Expected: each cut worse than the one before, perplexity out of bounds at the last.

Cost: 19 minutes and 5 GB on 2 cores with other work beside it.

    python -m experiments.run --config=configs/claims/clipped_inputs.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("clipped_inputs")
    config.replicates = 5
    config.update({"evaluation": {"windows": 8}})
    name = "weights_and_inputs"
    config.extra = {name: {"format": None, "inputs": "int8_token", "keep": (100.0, 99.9, 99.0, 95.0)}}
    config.claims = tuple(
        (f"{name} None {more}", f"{name} None {less}") for more, less in ((100.0, 99.9), (99.9, 99.0), (99.0, 95.0))
    )
    return config
