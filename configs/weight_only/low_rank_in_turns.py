"""A low-rank term in 3 bits beside HQQ: in turns, not only behind.

HQQ at 3 bits, and MiLo with one and with eleven turns (catalogue E7, F8).

Paper: MiLo (Huang et al. 2025, arXiv:2504.02658), abstract: experts at 3 bits recover most of what quantization loses
on Mixtral-8x7B and DeepSeek-MoE; no number for this model, which has no experts.

Expected: MiLo below HQQ; eleven turns below one by less than the term itself gains. On matrices 576 wide terms of rank
64 cost most of a bit a weight, stated in the table.

Cost: not measured yet; an estimate from the quickstart's rows is two hours and 4 GB on 2 cores.

    python -m experiments.run --config=configs/weight_only/low_rank_in_turns.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("low_rank_in_turns")
    config.replicates = 3
    config.recipe = {"methods": ("hqq",), "format": ("int3_g64_affine",)}
    config.extra = {"milo": {"format": "int3_g64_affine", "steps": (1, 11)}}
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (
        ("milo int3_g64_affine 1", "hqq int3_g64_affine"),
        ("milo int3_g64_affine 11", "milo int3_g64_affine 1"),
    )
    return config
