"""W8A8 with one scale a tensor behind a searched and tuned prefix, static and dynamic (catalogue I7).

CushionCache with and without its tuning, and PrefixQuant's choice of the prefix at the same numbers, with and without
that.

Paper: CushionCache (Son et al. 2024, arXiv:2406.12016): per-tensor W8A8 far better behind the prefix.

Expected: the row without a prefix fails, the others are near the float model; what tuning adds is small.

Cost: not measured yet; an estimate from the quickstart's rows is 90 minutes and 6 GB on 2 cores.

    python -m experiments.run --config=configs/activations/cushioncache.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("cushioncache")
    config.replicates = 3
    config.extra = {
        "cushioncache": {"static": (True, False), "steps": (0, 40)},
        "prefixquant": {
            "format": "int8_channel",
            "activations": "int8_tensor",
            "cache": None,
            "rotated": False,
            "prefixed": (True, False),
        },
    }
    config.calibration = {"windows": 8, "length": 512, "batch": 2}
    config.claims = (
        ("cushioncache True 0", "prefixquant int8_channel False"),
        ("cushioncache True 40", "cushioncache True 0"),
        ("cushioncache True 0", "prefixquant int8_channel True"),
    )
    return config
