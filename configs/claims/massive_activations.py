"""Massive activations act as constant biases: their mean in their place changes nothing, zero is a collapse.

The residual stream's values of 1,000 and more are replaced behind the layer where they first appear, by their mean over
the calibration windows or by zero; nothing is quantized (catalogue T4, T5).

Paper: Sun et al. 2024 (arXiv:2402.17762), section 3: LLaMA2-7B and 13B collapse at zero and lose nothing at the mean.

Expected: as in the paper; SmolLM2-135M has one of about 24,000 in channel 507 at the first token, behind layer 11.

Cost: not measured yet; an estimate from one row of about a minute is 15 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/claims/massive_activations.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("massive_activations")
    config.replicates = 5
    config.extra = {"pinned_massive": {"fill": ("mean", "zero")}}
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (("pinned_massive mean", "pinned_massive zero"), ("float", "pinned_massive mean"))
    return config
