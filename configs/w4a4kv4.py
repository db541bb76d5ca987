"""Weights, activations and the cache in four bits: the published ways, on the same tokens.

Nothing in front; SmoothQuant; QuaRot by round to nearest and by GPTQ; SpinQuant with a tenth of its authors' steps and
GPTQ; DuQuant with blocks of 64 channels (576 is no multiple of 128); FlatQuant with an eighth of the steps; rotations
with outlier tokens in front of every sequence (PrefixQuant with a scale a token). A scale an output and a token, as
each paper has it (catalogue G5, H2, H3, H4, I6). A replicate draws its own rotations. BATQuant, whose formats have
blocks, stands in configs/rotations/batquant.py.

Papers: QuaRot (arXiv:2404.00456), SpinQuant (arXiv:2405.16406), DuQuant (arXiv:2406.01721), FlatQuant
(arXiv:2410.09426), PrefixQuant (arXiv:2410.05265): each ahead of those before it.

Expected: nothing in front and SmoothQuant are lost, since SmolLM2-135M has activations up to 25,900 in one channel;
rotations make the model usable again, and those that are learned, or have the prefix, come first.

Cost: 85 minutes and 11 GB on 2 cores with other work beside it.

    python -m experiments.run --config=configs/w4a4kv4.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("w4a4kv4")
    config.replicates = 3
    cache = "int4_affine"
    config.extra = {
        "quarot": {"method": ("rtn", "gptq"), "rotated": (True, False)},
        "smoothquant": {"format": "int4_channel", "activations": "int4", "cache": cache},
        "spinquant": {"steps": 10},
        "duquant": {"block": 64, "cache": cache},
        "flatquant": {"steps": 60},
        "prefixquant": {"activations": "int4", "cache": cache},
    }
    config.calibration = {"windows": 16, "length": 256, "batch": 2}
    config.claims = (
        ("quarot rtn True", "quarot rtn False"),
        ("quarot rtn True", "smoothquant int4_channel"),
        ("quarot gptq True", "quarot rtn True"),
        ("spinquant", "quarot gptq True"),
        ("duquant", "quarot rtn True"),
        ("flatquant", "quarot gptq True"),
        ("prefixquant", "quarot rtn True"),
    )
    return config
