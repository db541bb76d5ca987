"""A few weights or channels in half precision, the rest lower.

GPTQ beside OWQ, which keeps the most sensitive input channels, and SpQR, which keeps single weights and quantizes its
scales (catalogue E3, E9, E10).

Papers: OWQ (Lee et al. 2024, arXiv:2306.02272), abstract: at 3.1 bits comparable to OPTQ at 4; SpQR (Dettmers et al.
2023, arXiv:2306.03078), abstract: less than 1 % relative loss of perplexity on LLaMA and Falcon at 3 to 4 bits.

Expected: both below GPTQ at the same base format; OWQ's six channels cost less than SpQR's one per cent. SmolLM2's
massive activations make a few input channels decide, which favours OWQ.

Cost: not measured yet; an estimate from the quickstart's rows is two hours and 4 GB on 2 cores.

    python -m experiments.run --config=configs/weight_only/outliers_apart.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("outliers_apart")
    config.replicates = 3
    config.recipe = {"methods": ("gptq", "owq"), "format": ("int3_g64_affine",), "channels": (1, 6)}
    config.extra = {"spqr": {"format": "int3_g16_affine"}}
    config.calibration = {"windows": 32, "length": 512, "batch": 4}
    config.claims = (
        ("owq 6 int3_g64_affine", "gptq int3_g64_affine"),
        ("spqr int3_g16_affine", "gptq int3_g64_affine"),
    )
    return config
