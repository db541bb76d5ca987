"""A dual scale for down projections and a shift of the mean help below 4 bits.

GPTAQ and GPTQ at int2_g64_affine with and without the dual scale and the mean shift (catalogue E14, D15).

Paper: D²Quant (Yan et al. 2026, arXiv:2602.02546): both parts lower the perplexity of 2-bit models; no number for
this model.

Expected: both help behind GPTAQ, the authors' default; behind GPTQ the shift does harm (`qjax.recipes.d2quant`). The
scale is stored as one float32 a channel, which folding into the up projection would save.

Cost: not measured yet; an estimate from the quickstart's rows is 150 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/weight_only/d2quant.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("d2quant")
    config.replicates = 3
    config.within = "sequential"  # mean shifts need it; every row alike
    config.recipe = {
        "methods": ("d2quant",),
        "format": ("int2_g64_affine",),
        "method": ("gptaq", "gptq"),
        "dual": (True, False),
        "shift": (True, False),
    }
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    name = "d2quant {} int2_g64_affine {} {}".format
    config.claims = (
        (name(True, "gptaq", False), name(False, "gptaq", False)),
        (name(False, "gptaq", True), name(False, "gptaq", False)),
        (name(False, "gptq", False), name(False, "gptq", True)),
    )
    return config
