"""Learned rounding beats rounding to nearest, and more so the wider its loss looks.

AdaRound on single layers and, as BRECQ, on blocks; SignRound, FlexRound and AdaQuant; low-rank rounding over windows of
two blocks; TesseraQ behind AWQ's scaling; at int3_g64_affine and int2_g64_affine (catalogue D3-D8, D10).

Papers: SignRound (Cheng et al. 2023, arXiv:2309.05516); FlexRound (Lee et al. 2023, arXiv:2306.00317); AdaRound (Nagel
et al. 2020, arXiv:2004.10568); BRECQ (Li et al. 2021, arXiv:2102.05426); AdaQuant (Hubara et al. 2020,
arXiv:2006.10518); CBQ (Ding et al. 2023, arXiv:2312.07950); TesseraQ (Li and Panda 2024, arXiv:2410.19103).
AutoRound's own table of Qwen2.5-0.5B-Instruct, the mean of 13 tasks: float .4192, 4 bits in groups of 128 .4129, 2 bits
in groups of 64 .2878.

Expected: all better than RTN, and the gap to float smaller for losses over blocks and windows than over layers.

Cost: not measured yet; steps are cut to what 2 cores can do, an estimate is 4 hours and 6 GB.

    python -m experiments.run --config=configs/weight_only/learned_rounding.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("learned_rounding")
    config.replicates = 3
    config.recipe = {
        "methods": ("rtn", "adaround", "brecq", "adaquant", "signround", "flexround", "cbq", "tesseraq"),
        "format": ("int3_g64_affine", "int2_g64_affine"),
        "steps": 200,
    }
    config.calibration = {"windows": 16, "length": 512, "batch": 2}
    config.claims = tuple(
        (f"{method} int3_g64_affine", "rtn int3_g64_affine")
        for method in ("adaround", "brecq", "adaquant", "signround", "flexround", "cbq", "tesseraq")
    )
    return config
