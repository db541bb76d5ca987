"""The worst matrices left in float, the rest in NF4.

NF4 everywhere, and with a twentieth and a tenth of the matrices left alone (catalogue E26).

Paper: Unsloth, dynamic 4-bit quantization (2024): vision models that break under NF4 work again; no number for this
model.

Expected: better at a higher width; the table shows at what price (float32 here, 16 bits there).

Cost: not measured yet; an estimate from the quickstart's rows is 60 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/weight_only/unsloth_dynamic.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("unsloth_dynamic")
    config.replicates = 3
    config.recipe = {"methods": ("unsloth_dynamic",), "format": ("nf4_g64",), "share": (0.05, 0.1)}
    config.extra = {"rtn": {"format": "nf4_g64"}}
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (("unsloth_dynamic nf4_g64 0.1", "rtn nf4_g64"),)
    return config
