"""GPTQ at three bits closes most of the gap that round-to-nearest leaves.

RTN and GPTQ (static groups, activation order) at int3_g64_affine on three replicates of weights and calibration sample
(catalogue E1, E3).

Paper: GPTQ (Frantar et al. 2022, arXiv:2210.17323), table 3 and appendix: OPT-125M at 3 bits, RTN 1.3e3, GPTQ 53.9,
float 27.7.

Expected: SmolLM2-135M is milder because of its groups of 64; GPTQ's loss above float is less than half of RTN's.

Cost: not measured yet; an estimate from the quickstart's rows is 25 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/gptq_int3.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("gptq_int3")
    config.replicates = 3
    config.recipe = {
        "methods": ("rtn", "gptq"),
        "format": ("int3_g64_affine",),
        "order": "activation",
        "groups": "static",
    }
    config.calibration = {"windows": 32, "length": 512, "batch": 4}
    config.claims = (("gptq int3_g64_affine", "rtn int3_g64_affine"),)
    return config
