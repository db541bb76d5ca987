"""Rotations make 4-bit activations possible: W4A4KV4 with and without them.

QuaRot by round to nearest and by GPTQ, and the same numbers without its rotations (catalogue H2).

Paper: QuaRot (Ashkboos et al. 2024, arXiv:2404.00456): Llama-2-7B on WikiText-2 at W4A4KV4 loses a few tenths of
perplexity with GPTQ, where the unrotated network is lost.

Expected: the unrotated rows fail outright (SmolLM2-135M has activations up to 25,900 in one channel); GPTQ better than
round to nearest behind the rotation.

Cost: not measured yet; an estimate from the quickstart's rows is 120 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/rotations/quarot.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("quarot")
    config.replicates = 3
    config.recipe = {"methods": ("quarot",), "method": ("rtn", "gptq"), "rotated": (True, False)}
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (
        ("quarot rtn True", "quarot rtn False"),
        ("quarot gptq True", "quarot gptq False"),
        ("quarot gptq True", "quarot rtn True"),
    )
    return config
