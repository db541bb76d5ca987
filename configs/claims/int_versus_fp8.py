"""Eight-bit floats win with coarse scales.

Weights and inputs in the same format: one scale for the tensor, or one a channel and a token (catalogue T24, A10). The
other side, MXINT8 against MXFP8, stands in configs/claims/int_versus_fp.py.

Paper: Chen et al. 2025 (arXiv:2510.25602): FP8 ahead at coarse granularity.

Expected: FP8 far better than INT8 with one scale for the tensor.

Cost: 6 minutes and 5.5 GB on 2 cores with other work beside it.

    python -m experiments.run --config=configs/claims/int_versus_fp8.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("int_versus_fp8")
    config.replicates = 5
    config.update({"evaluation": {"windows": 8}})
    name = "weights_and_inputs"
    formats = ("fp8_e4m3_tensor", "int8_tensor", "fp8_e4m3", "int8")
    config.extra = {name: {"format": formats}}
    config.claims = (
        (f"{name} fp8_e4m3_tensor", f"{name} int8_tensor"),
        (f"{name} fp8_e4m3", f"{name} int8"),
    )
    return config
