"""Weights are easy, activations are hard; a scale for each input channel would repair them, a scale a token helps less.

Rounded inputs with float weights at 8 and 4 bits, with a scale for the tensor, each token, or each input channel
(which no matrix product can use: it stands in the sum); rounded weights with float inputs beside them (catalogue T43,
C1, C3, C4).

Papers: ZeroQuant (arXiv:2206.01861); SmoothQuant (arXiv:2211.10438), table 1: per channel keeps float accuracy, per
token hardly helps.

Expected: at equal bits rounded inputs worse than rounded weights; channel better than token, token better than
tensor.

Cost: 12 minutes and 5.5 GB on 2 cores with other work beside it.

    python -m experiments.run --config=configs/claims/hard_inputs.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("hard_inputs")
    config.replicates = 5
    config.update({"evaluation": {"windows": 8}})
    name = "weights_and_inputs"
    inputs = tuple(f"int{bits}_{where}" for bits in (8, 4) for where in ("tensor", "token", "input"))
    config.recipe = {"methods": ("rtn",), "format": ("int8", "int4")}
    config.extra = {name: {"format": None, "inputs": inputs}}
    config.claims = tuple(
        claim
        for bits in (8, 4)
        for claim in (
            (f"rtn int{bits}", f"{name} None int{bits}_token"),
            (f"{name} None int{bits}_input", f"{name} None int{bits}_token"),
            (f"{name} None int{bits}_token", f"{name} None int{bits}_tensor"),
        )
    )
    return config
