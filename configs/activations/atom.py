"""Four bits in groups with the outlier channels in eight, weights, activations and cache (catalogue G17).

Atom with 128 and with 64 outlier channels, and with four bits in the same groups and none; groups of 64, since 576 -
128 channels are no multiple of 128.

Paper: Atom (Zhao et al. 2023, arXiv:2310.19102): in its ablation of W4A4, keeping the outlier channels (in FP16, then
in INT8 at no loss) is the largest single gain.

Expected: 128 outlier channels better than 64, and both better than none.

Cost: not measured yet; an estimate from the quickstart's rows is 90 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/activations/atom.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("atom")
    config.replicates = 3
    groups = {"format": "int4_g64_absmax", "activations": "int4_g64_absmax"}
    config.extra = {
        "atom": {**groups, "count": (128, 64)},
        "quarot": {"format": "int4_g64_absmax", "activations": "int4_g64_absmax", "rotated": False},
    }
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (
        ("atom 128 int4_g64_absmax", "quarot int4_g64_absmax"),
        ("atom 128 int4_g64_absmax", "atom 64 int4_g64_absmax"),
    )
    return config
