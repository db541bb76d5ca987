"""GPTQ's target moved to the float model's output, and kept there.

RTN, GPTQ, GPTAQ and ResComp at int3_g64_affine and int2_g64_affine in activation order (catalogue E1, E3, E4, E5).

Papers: GPTAQ (Li et al. 2025, arXiv:2504.02692); ResComp (Li et al. 2026, arXiv:2604.07955), table 1, Llama-2-7B at 3
bits in groups of weights, WikiText-2: GPTQ 6.73, GPTQ + ours 6.40, GPTAQ 6.53, GPTAQ + ours 6.25.

Expected: GPTAQ at most GPTQ, ResComp at most GPTAQ; the gain is larger at two bits.

Cost: not measured yet; an estimate from the quickstart's rows is two hours and 5 GB on 2 cores.

    python -m experiments.run --config=configs/weight_only/asymmetric.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("asymmetric")
    config.replicates = 3
    config.within = "sequential"  # as in the authors' code, GPTQ alike
    config.recipe = {
        "methods": ("rtn", "gptq", "gptaq", "rescomp"),
        "format": ("int3_g64_affine", "int2_g64_affine"),
        "order": "activation",
    }
    config.calibration = {"windows": 32, "length": 512, "batch": 4}
    config.claims = (
        ("gptaq int3_g64_affine", "gptq int3_g64_affine"),
        ("rescomp int3_g64_affine", "gptaq int3_g64_affine"),
        ("gptaq int2_g64_affine", "gptq int2_g64_affine"),
        ("rescomp int2_g64_affine", "gptaq int2_g64_affine"),
    )
    return config
