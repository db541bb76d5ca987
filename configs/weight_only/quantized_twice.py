"""Binary codes inside a finer integer grid, beside that grid's own bits.

GPTQ at int3 and int2 a channel beside GPTQT with one and two more bits in its first step (catalogue E3, E21).

Paper: GPTQT (Guo, Lang, Ren 2024, arXiv:2407.02891), abstract: at 3 bits 4.01 less perplexity than its baseline on
OPT-66B.

Expected: GPTQT below GPTQ at the same bits a code, more so at two bits; its tables cost bits of their own.

Cost: not measured yet; an estimate from the quickstart's rows is two hours and 4 GB on 2 cores.

    python -m experiments.run --config=configs/weight_only/quantized_twice.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("quantized_twice")
    config.replicates = 3
    config.recipe = {"methods": ("gptq", "gptqt"), "format": ("int3", "int2"), "first": 4, "order": "none"}
    config.calibration = {"windows": 32, "length": 512, "batch": 4}
    config.claims = (("gptqt int3", "gptq int3"), ("gptqt int2", "gptq int2"))
    return config
