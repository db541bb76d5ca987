"""Eight bits for the tokens with outliers, four for the others, against four or eight for all.

Weights with a scale an output in four bits; a token is wide where its largest magnitude is so many times its rms.

Expected: SmolLM2-135M has its massive activations in few tokens, so a few wide tokens may win back most of the loss.

Cost: not measured yet; an estimate from the quickstart's rows is 15 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/activations/token_adaptive.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("token_adaptive")
    config.replicates = 3
    config.extra = {
        "token_adaptive": {"crest": (9.0, 12.0, 18.0)},
        "weights_and_inputs": {"format": "int4_channel", "inputs": ("int4", "int8")},
    }
    config.claims = (
        ("token_adaptive 12.0", "weights_and_inputs int4_channel int4"),
        ("weights_and_inputs int4_channel int8", "token_adaptive 9.0"),
    )
    return config
