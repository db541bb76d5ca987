"""Integers and floats of equal bits in the same blocks: eight bits to MXINT8, four to FP4, rotated NVINT4 past NVFP4.

The same format for weights and inputs: MX blocks of 32 at eight and at four bits, NV blocks of 16, as they are and with
a random Hadamard rotation of 32 channels at a time in front of every matrix; all of it in one table (catalogue T24,
A19-A21, H7, H8).

Paper: Chen et al. 2025 (arXiv:2510.25602): MXINT8 ahead of MXFP8 on twelve models, FP4 ahead without rotation, NVINT4
ahead of NVFP4 with it.

Expected: as in the paper in the errors of the layers; the difference in perplexity may be small.

Cost: 45 minutes and 5 GB on 2 cores with other work beside it.

    python -m experiments.run --config=configs/claims/int_versus_fp.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("int_versus_fp")
    config.replicates = 5
    config.update({"evaluation": {"windows": 16}})
    name = "weights_and_inputs"
    formats = ("mxfp8_e4m3", "mxint8", "mxfp4", "mxint4", "nvfp4", "nvint4")
    config.extra = {name: {"format": formats, "rotation": ("none", "blocks"), "block": 32}}
    config.calibration = {"windows": 1, "length": 64, "batch": 1}  # nothing here is calibrated
    config.claims = (
        (f"{name} mxint8 none", f"{name} mxfp8_e4m3 none"),
        (f"{name} mxint8 blocks", f"{name} mxfp8_e4m3 blocks"),
        (f"{name} mxfp4 none", f"{name} mxint4 none"),
        (f"{name} nvfp4 none", f"{name} nvint4 none"),
        (f"{name} nvint4 blocks", f"{name} nvfp4 blocks"),
        (f"{name} nvfp4 none", f"{name} mxfp4 none"),
    )
    return config
