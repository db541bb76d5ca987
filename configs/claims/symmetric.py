"""In networks with gated activations a symmetric grid is enough.

Weights of 4 bits in groups of 64, and inputs of 8 and 6 bits a token, each with and without a zero point (catalogue
T45, A1, A2).

Paper: none on a model of this size; Touvron et al. 2023 (arXiv:2302.13971) for the architecture. The claim is the
catalogue's.

Expected: a zero point changes inputs by little; for weights it buys more, at a sixteenth of a bit and more.

Cost: 9 minutes and 5.5 GB on 2 cores with other work beside it.

    python -m experiments.run --config=configs/claims/symmetric.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("symmetric")
    config.replicates = 5
    config.update({"evaluation": {"windows": 8}})
    name = "weights_and_inputs"
    config.recipe = {"methods": ("rtn",), "format": ("int4_g64_affine", "int4_g64")}
    config.extra = {
        name: {"format": None, "inputs": ("int8_token_affine", "int8_token", "int6_token_affine", "int6_token")}
    }
    config.claims = (
        ("rtn int4_g64_affine", "rtn int4_g64"),
        (f"{name} None int8_token_affine", f"{name} None int8_token"),
        (f"{name} None int6_token_affine", f"{name} None int6_token"),
    )
    return config
