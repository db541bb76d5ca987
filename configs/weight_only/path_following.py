"""Greedy path following and sigma-delta, two methods with error bounds.

RTN and GPTQ beside GPFQ, SPFQ and frame quantization at int4_g64 (catalogue E1, E3, D12, D13).

Papers: GPFQ (Zhang, Zhou, Saab 2022, arXiv:2201.11113), SPFQ (Zhang, Saab 2023, arXiv:2309.10975) and frame
quantization (Czaja and Na 2024, arXiv:2404.08131), on image classifiers; no published number for a language model.

Expected: GPFQ between RTN and GPTQ; SPFQ worse than GPFQ, since its bounds want more levels; sigma-delta at redundancy
2 better than RTN at about twice the bits.

Cost: not measured yet; an estimate from the quickstart's rows is two hours and 5 GB on 2 cores.

    python -m experiments.run --config=configs/weight_only/path_following.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("path_following")
    config.replicates = 3
    config.within = "sequential"  # what GPFQ and SPFQ need; GPTQ alike
    config.recipe = {"methods": ("rtn", "gptq", "gpfq", "spfq"), "format": ("int4_g64",)}
    config.extra = {"frames": {"format": ("int2", "int4")}}
    config.calibration = {"windows": 32, "length": 512, "batch": 4}
    config.claims = (
        ("gpfq int4_g64", "rtn int4_g64"),
        ("gptq int4_g64", "gpfq int4_g64"),
        ("gpfq int4_g64", "spfq int4_g64"),
    )
    return config
