"""Outlier channels shared out between others and a low-rank correction, W4A4 (catalogue G12).

QLLM with a twentieth of the authors' steps and without a step, both with and without reassembly.

Paper: QLLM (Liu et al. 2023, arXiv:2310.08041): LLaMA-2-70B at 4 bits is 7.89 points ahead of what was published before
on average over five zero-shot tasks.

Expected: reassembly better than none, the correction better than none.

Cost: not measured yet; an estimate from the quickstart's rows is 120 minutes and 6 GB on 2 cores.

    python -m experiments.run --config=configs/activations/qllm.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("qllm")
    config.replicates = 3
    config.extra = {"qllm": {"ratio": (0.2, 0.0), "steps": (64, 0)}}
    config.calibration = {"windows": 8, "length": 256, "batch": 2}
    config.claims = (("qllm 0.2 64", "qllm 0.0 64"), ("qllm 0.2 64", "qllm 0.2 0"))
    return config
