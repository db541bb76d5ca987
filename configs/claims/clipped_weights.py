"""Searched ranges beat the extremes for weights of few bits.

Round to nearest at 4 and 3 bits, groups of 64 and whole channels, with the extremes and with ranges of the least
squared error (catalogue B1, B5).

Papers: Nagel et al. 2021 (arXiv:2106.08295), section 3.1; Choukroun et al. 2019 (arXiv:1902.06822).

Expected: searched ranges better everywhere, most of all a scale a channel at 3 bits.

Came out: the opposite with a scale a channel, although the error of the weights falls. The search clips the largest
weights of the down projections, most of which write channel 507, where the model keeps its massive activation
(configs/claims/super_weights.py).

Cost: 14 minutes and 5.5 GB on 2 cores with other work beside it.

    python -m experiments.run --config=configs/claims/clipped_weights.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("clipped_weights")
    config.replicates = 5
    config.update({"evaluation": {"windows": 8}})
    name = "weights_and_inputs"
    formats = ("int4_channel", "int4_g64", "int3_channel", "int3_g64")
    config.extra = {name: {"format": formats, "inputs": None, "searched": (True, False)}}
    config.claims = tuple((f"{name} {f} True", f"{name} {f} False") for f in formats)
    return config
