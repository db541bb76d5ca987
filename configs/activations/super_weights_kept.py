"""One weight and one activation in float repair plain rounding.

Four-bit weights, and eight-bit weights and inputs, both as they are and with the super weight and the super activation
apart; a scale an output for weights, one a tensor for inputs (catalogue I9).

Paper: Yu et al. 2024 (arXiv:2411.07191), section 4: round to nearest with the two kept is competitive with SmoothQuant,
and works in far larger blocks.

Expected: the activation apart repairs W8A8 a tensor, since SmolLM2-135M has activations up to 25,900 at one channel of
the first token; the weight apart helps little, as a scale an output already holds it.

Cost: not measured yet; an estimate from one row of about a minute is 30 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/activations/super_weights_kept.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("super_weights_kept")
    config.replicates = 3
    config.extra = {
        "super_weights": {"format": ("int4_channel", "int8"), "activations": (None, "int8_tensor")},
        "rtn": {"format": "int4_channel"},
        "w8a8": {"granularity": "tensor"},
        "smoothquant": {},
    }
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (
        ("super_weights None int4_channel", "rtn int4_channel"),
        ("super_weights int8_tensor int8", "w8a8"),
        ("super_weights int8_tensor int8", "smoothquant"),
    )
    return config
