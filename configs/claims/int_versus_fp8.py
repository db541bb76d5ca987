"""Eight-bit floats win with coarse scales, eight-bit integers with a power of two for each 32.

Weights and inputs in the same format: one scale for the tensor, one a channel and a token, and the MX blocks of 32
(catalogue T24, A10, A19, A21).

Paper: Chen et al. 2025 (arXiv:2510.25602): FP8 ahead at coarse granularity, MXINT8 better than MXFP8 on twelve
models.

Expected: FP8 better than INT8 with one scale for the tensor; MXINT8 better than MXFP8.

Cost: not measured yet; an estimate from one row of about a minute is 40 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/claims/int_versus_fp8.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("int_versus_fp8")
    config.replicates = 5
    config.update({"evaluation": {"windows": 16}})
    name = "weights_and_inputs"
    formats = ("fp8_e4m3_tensor", "int8_tensor", "fp8_e4m3", "int8", "mxfp8_e4m3", "mxint8")
    config.extra = {name: {"format": formats}}
    config.claims = (
        (f"{name} fp8_e4m3_tensor", f"{name} int8_tensor"),
        (f"{name} fp8_e4m3", f"{name} int8"),
        (f"{name} mxint8", f"{name} mxfp8_e4m3"),
    )
    return config
