"""Scales found anew for each token beat scales from calibration.

Weights and inputs of 8 bits: one static scale for the tensor, one dynamic scale for the tensor, one a token
(catalogue C9).

Papers: ZeroQuant (arXiv:2206.01861), section 3.1; SmoothQuant (arXiv:2211.10438), levels O1 to O3.

Expected: a token better than a dynamic tensor, that better than a static one. What a fixed prefix
makes of the order is configs/claims/static_prefix.py.

Cost: 9 minutes and 5.5 GB on 2 cores with other work beside it.

    python -m experiments.run --config=configs/claims/static_inputs.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("static_inputs")
    config.replicates = 5
    config.update({"evaluation": {"windows": 16}})
    config.extra = {
        "w8a8": {"granularity": ("token", "tensor")},
        "weights_and_inputs": {"format": "int8", "inputs": "int8_tensor", "static": True},
    }
    config.claims = (("w8a8 token", "w8a8 tensor"), ("w8a8 tensor", "weights_and_inputs int8"))
    return config
