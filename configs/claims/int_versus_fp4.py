"""Four-bit floats beat four-bit integers in blocks; behind a rotation NVINT4 passes NVFP4.

W4A4, the same format on both sides: MX blocks of 32 and NV blocks of 16, as they are and with a random Hadamard
rotation of 32 channels at a time in front of every matrix (catalogue T24, A19-A21, H7, H8).

Paper: Chen et al. 2025 (arXiv:2510.25602): FP4 ahead without rotation, NVINT4 ahead of NVFP4 with it.

Expected: as in the paper in the errors of the layers; the difference in perplexity may be small.

Cost: not measured yet; an estimate from one row of about a minute is 55 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/claims/int_versus_fp4.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("int_versus_fp4")
    config.replicates = 5
    config.update({"evaluation": {"windows": 16}})
    name = "weights_and_inputs"
    formats = ("mxfp4", "mxint4", "nvfp4", "nvint4")
    config.extra = {name: {"format": formats, "rotation": ("none", "blocks"), "block": 32}}
    config.claims = (
        (f"{name} mxfp4 none", f"{name} mxint4 none"),
        (f"{name} nvfp4 none", f"{name} nvint4 none"),
        (f"{name} nvint4 blocks", f"{name} nvfp4 blocks"),
        (f"{name} nvfp4 none", f"{name} mxfp4 none"),
    )
    return config
