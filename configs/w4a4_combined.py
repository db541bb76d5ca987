"""Rotations, a prefix, zero points and GPTQ together at W4A4KV4, and each taken away.

`w4a4` with its weights by GPTAQ, by GPTQ and by round to nearest, each with and without the prefix, beside QuaRot by
GPTQ, which has as many bits, and DuQuant, whose maps cost more (catalogue E4, H2, H4, I6).

Paper: none; the parts are those of QuaRot (arXiv:2404.00456), PrefixQuant (arXiv:2410.05265), SpinQuant
(arXiv:2405.16406) and GPTAQ (arXiv:2504.02692).

Expected: the whole better than QuaRot, and every part worth having; GPTAQ little better than GPTQ. Choices are made
with `--config.evaluation.part=development`.

Cost: 55 minutes and 8 GB on 2 cores.

    python -m experiments.run --config=configs/w4a4_combined.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("w4a4_combined")
    config.replicates = 3
    config.within = "together"  # as recorded; by default GPTAQ would be measured sequentially
    config.extra = {
        "w4a4": {"method": ("gptaq", "gptq", "rtn"), "prefixed": (True, False)},
        "quarot": {},
        "duquant": {"block": 64, "cache": "int4_affine"},
    }
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (
        ("w4a4 gptaq True", "quarot"),
        ("w4a4 gptaq True", "duquant"),
        ("w4a4 gptaq True", "w4a4 gptaq False"),
        ("w4a4 gptaq True", "w4a4 gptq True"),
        ("w4a4 gptq True", "w4a4 rtn True"),
    )
    return config
