"""Activations whose outliers pass: the largest of each block, or what a static range cuts off (catalogue G26, G28).

OPAL with four and with one kept of 64, in 4 and 7 bits; llm.npu, and 8 static bits without its shadows.

Paper: OPAL (Koo et al. 2024, arXiv:2409.05902): perplexity rises by less than 1; llm.npu (Xu et al. 2024,
arXiv:2407.05858): accuracy near float from static INT8.

Expected: four kept better than one; the shadows better than none.

Cost: not measured yet; an estimate from the quickstart's rows is 45 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/activations/kept_outliers.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("kept_outliers")
    config.replicates = 3
    config.extra = {
        "opal": {
            "format": "int4_g64",
            "activations": (("int4_g64_floor_e8m0", "int7_g64_floor_e8m0"),),
            "keep": (4, 1),
        },
        "llm_npu": {"p": (99.9, 100.0)},
    }
    config.calibration = {"windows": 8, "length": 512, "batch": 2}
    config.claims = (("opal int4_g64 4", "opal int4_g64 1"), ("llm_npu 99.9", "llm_npu 100.0"))
    return config
