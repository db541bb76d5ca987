"""NVFP4 on both sides, outlier channels twice (catalogue G19).

ARCQuant, the same formats plain, and rotated.

Paper: ARCQuant (Meng et al. 2026, arXiv:2601.07475): W4A4 in NVFP4 near the float perplexity, ahead of rotations and
of smoothing.

Expected: ARCQuant better than plain NVFP4, and than the rotated one.

Cost: not measured yet; an estimate from the quickstart's rows is 45 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/activations/arcquant.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("arcquant")
    config.replicates = 3
    config.extra = {
        "arcquant": {},
        "quarot": {
            "format": "nvfp4",
            "activations": "nvfp4",
            "method": "rtn",
            "cache": None,
            "clip": 1.0,
            "rotated": (True, False),
        },
    }
    config.calibration = {"windows": 8, "length": 512, "batch": 2}
    config.claims = (("arcquant", "quarot nvfp4 False"), ("arcquant", "quarot nvfp4 True"))
    return config
