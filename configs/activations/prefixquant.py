"""Static against dynamic activations, with and without a prefix of outlier tokens: W4A4KV4 (catalogue I6).

PrefixQuant without its fine-tuning, the same with a scale a token, and both without the prefix; all rotated.

Paper: PrefixQuant (Chen et al. 2024, arXiv:2410.05265): "static quantization beats dynamic through prefixed outliers".

Expected: the static row without a prefix fails outright, as SmolLM2-135M has activations up to 25,900 at the first
token of a window. Whether static beats dynamic is the question; configs/claims/static_prefix.py asks it at W8A8.

`python -m experiments.diagnose --prefix 1` shows the stream behind it: no value above 1,000 is left, and none above 135
from layer 11 to layer 18, where 24,900 stood.

Cost: not measured yet; an estimate from the quickstart's rows is 90 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/activations/prefixquant.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("prefixquant")
    config.replicates = 3
    config.recipe = {
        "methods": ("prefixquant",),
        "activations": ("int4_tensor", "int4"),
        "prefixed": (True, False),
    }
    config.calibration = {"windows": 64, "length": 512, "batch": 4}
    config.claims = (
        ("prefixquant int4_tensor True", "prefixquant int4_tensor False"),
        ("prefixquant int4_tensor True", "prefixquant int4 True"),
        ("prefixquant int4_tensor True", "prefixquant int4 False"),
    )
    return config
