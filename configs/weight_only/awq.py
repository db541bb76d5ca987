"""Scaling channels by their activations saves the weights that matter.

RTN and AWQ with and without its clipping at int4_g64_affine and int3_g64_affine (catalogue E8).

Paper: AWQ (Lin et al. 2023, arXiv:2306.00978, table 4): Llama-2-7B at 4 bits in groups of 128 5.60 from RTN 5.73 and
float 5.47, at 3 bits 6.24 from 6.66. An independent bench of SmolLM2-135M at 4 bits in groups of 64: 17.47 from RTN
19.95 and float 15.42.

Expected: AWQ better than RTN at both widths, with about half of the loss at 4 bits removed.

Cost: not measured yet; an estimate from the quickstart's rows is 120 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/weight_only/awq.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("awq")
    config.replicates = 3
    config.recipe = {"methods": ("rtn", "awq"), "format": ("int4_g64_affine", "int3_g64_affine"), "clip": (True, False)}
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (
        ("awq True int4_g64_affine", "rtn int4_g64_affine"),
        ("awq True int3_g64_affine", "rtn int3_g64_affine"),
        ("awq True int3_g64_affine", "awq False int3_g64_affine"),
    )
    return config
