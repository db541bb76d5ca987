"""Layers rounded in turn, what is still in float trained on the loss after each.

Against rounding to nearest and against training all layers under rounding from the start (catalogue D16, B22).

Paper: catalogue D16 has 8-bit integers in small convolutional networks; no number of it is for a language model.

Expected: better than rounding to nearest at three bits; training through all roundings at once at least as good.

Cost: not measured yet; an estimate from its steps is five hours and 8 GB on 2 cores.

    python -m experiments.run --config=configs/weight_only/layer_by_layer.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("layer_by_layer")
    config.replicates = 3
    config.update({"evaluation": {"windows": 16}})
    config.schedule = "whole"
    config.recipe = {"methods": ("rtn",), "format": ("int3_g64",)}
    config.extra = {
        "layer_by_layer": {"format": "int3_g64", "steps": 2},
        "faq": {"format": "int3_g64", "steps": 240},
    }
    config.claims = (("layer_by_layer int3_g64", "rtn int3_g64"), ("faq int3_g64", "layer_by_layer int3_g64"))
    return config
