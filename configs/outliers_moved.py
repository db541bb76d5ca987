"""Where SmolLM2's massive activations go: left alone, smoothed, rotated, balanced, or taken into a prefix.

Rows of four-bit weights, activations and cache, for the pictures in the report: what meets each matrix, layer by layer,
before and after (catalogue T4, I10, G5, H2, H4, I6). Eight windows: the perplexities only say which rows still work,
configs/w4a4kv4.py measures them.

Papers: Sun et al. 2024 (arXiv:2402.17762) for massive activations; those of the methods are named in their configs.

Expected: smoothing divides the large channels and leaves the one token that is large in them; a rotation spreads that
token over all channels; with a prefix no token in the sequence is large.

Cost: 8 minutes and 6.5 GB on 2 cores.

    python -m experiments.run --config=configs/outliers_moved.py
    python -m experiments.report runs/
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("outliers_moved")
    cache = "int4_affine"
    config.extra = {
        "smoothquant": {"format": "int4_channel", "activations": "int4", "cache": cache},
        "quarot": {"method": "rtn"},
        "duquant": {"block": 64, "cache": cache},
        "prefixquant": {"activations": "int4", "cache": cache, "rotated": (True, False)},
    }
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.evaluation = {"windows": 8, "length": 512, "batch": 4, "part": "report"}
    config.pictures = True
    return config
