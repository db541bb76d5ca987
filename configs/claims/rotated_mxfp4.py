"""A rotation across all channels hurts MXFP4, one inside its blocks does not.

MXFP4 weights and inputs: as they are, behind a random Hadamard rotation of each whole input, and of 32 channels at a
time, the blocks of the format (catalogue G30, H5, H7).

Papers: BATQuant (arXiv:2603.16590) and the studies it cites: a global rotation spreads one outlier over all blocks.

Expected: blocks at least as good as none, none better than whole; SmolLM2's activations of 25,900 in one channel may
turn the second.

Cost: 25 minutes and 6 GB on 2 cores.

    python -m experiments.run --config=configs/claims/rotated_mxfp4.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("rotated_mxfp4")
    config.replicates = 5
    name = "weights_and_inputs"
    config.extra = {name: {"format": "mxfp4", "rotation": ("none", "blocks", "inputs"), "block": 32}}
    config.claims = (
        (f"{name} mxfp4 blocks", f"{name} mxfp4 none"),
        (f"{name} mxfp4 none", f"{name} mxfp4 inputs"),
        (f"{name} mxfp4 blocks", f"{name} mxfp4 inputs"),
    )
    return config
