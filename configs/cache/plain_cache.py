"""What a token's keys and values may lose: int8, fp8 and int4 a head, int4 and int2 in groups with a zero point, MXFP4.

Weights stay float; only what attention remembers is rounded (catalogue N6).

Papers: KIVI (Liu et al. 2024, arXiv:2402.02750) finds that 2-bit keys need scales along the tokens while values may
keep theirs a token; KVQuant (Hooper et al. 2024, arXiv:2401.18079). Neither prints the plain codec on a model of this
size.

Expected: int8 indistinguishable from float, int4 in groups of 32 with a zero point better than one scale a head, int2
far off. Keys suffer more than values: their outliers sit in few channels.

Cost: not measured yet; an estimate from the quickstart's rows is 30 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/cache/plain_cache.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("plain_cache")
    config.replicates = 3
    config.recipe = {
        "methods": ("kv_cache",),
        "format": ("int8", "fp8_e4m3", "int4", "int4_g32_affine", "mxfp4", "int2_g32_affine"),
    }
    config.calibration = {"windows": 1, "length": 512, "batch": 1}
    config.claims = (
        ("kv_cache int8", "kv_cache int4"),
        ("kv_cache int4_g32_affine", "kv_cache int4"),
        ("kv_cache int4_g32_affine", "kv_cache int2_g32_affine"),
    )
    return config
