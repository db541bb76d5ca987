"""Dynamic activation ranges beat static ones, until a fixed prefix takes the massive activations out of the sequence.

W8A8 with one static scale a tensor and with a dynamic scale a token, both with the outlier tokens of the model in front
of every sequence and without; nothing is rotated (catalogue C9, I6).

Paper: PrefixQuant (Chen et al. 2024, arXiv:2410.05265): "static quantization beats dynamic through prefixed outliers".

Expected: static without a prefix fails, as SmolLM2-135M has activations up to 25,900 at the first token of a window;
the prefix repairs it. That static then beats dynamic a token is a claim about larger models.

Cost: 30 minutes and 5 GB on 2 cores with other work beside it.

    python -m experiments.run --config=configs/claims/static_prefix.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("static_prefix")
    config.replicates = 5
    config.extra = {
        "prefixquant": {
            "format": "int8_channel",
            "activations": ("int8_tensor", "int8"),
            "cache": None,
            "rotated": False,
            "prefixed": (True, False),
        }
    }
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (
        ("prefixquant int8_tensor int8_channel True", "prefixquant int8_tensor int8_channel False"),
        ("prefixquant int8 int8_channel False", "prefixquant int8_tensor int8_channel False"),
        ("prefixquant int8_tensor int8_channel True", "prefixquant int8 int8_channel True"),
        ("prefixquant int8 int8_channel True", "prefixquant int8 int8_channel False"),
    )
    return config
