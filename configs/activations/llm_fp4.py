"""4-bit floats on both sides, static, with the exponents of channels shifted beforehand (catalogue G14).

LLM-FP4 with and without the shift.

Paper: LLM-FP4 (Liu et al. 2023, arXiv:2310.16836): LLaMA-13B with 4-bit weights and activations 5.8 points below float
in zero-shot accuracy, 12.7 above what was published before.

Expected: the shifted exponents better than none.

Cost: not measured yet; an estimate from the quickstart's rows is 45 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/activations/llm_fp4.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("llm_fp4")
    config.replicates = 3
    config.extra = {"llm_fp4": {"bits": (2, None)}}
    config.calibration = {"windows": 8, "length": 512, "batch": 2}
    config.claims = (("llm_fp4 2", "llm_fp4 None"),)
    return config
