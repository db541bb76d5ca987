"""A stack of one-bit layers: each one added lowers the error.

BitStack with one, two and three layers of signs and rank-16 magnitudes (catalogue E30).

Paper: BitStack (Wang et al. 2024, arXiv:2410.23918): any-size compression of Llama models, on par with 2- and 3-bit
rounding in groups; no number for this model.

Expected: better with each layer; on matrices 576 wide a layer's factors cost more than half a bit a weight, stated in
the table.

Cost: not measured yet; an estimate from the quickstart's rows is 60 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/weight_only/bitstack.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("bitstack")
    config.replicates = 3
    config.recipe = {"methods": ("bitstack",), "depth": (1, 2, 3)}
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (("bitstack 2", "bitstack 1"), ("bitstack 3", "bitstack 2"))
    return config
