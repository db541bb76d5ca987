"""Three and two bits: what helped most in the methods of others, together, and each part taken away.

`few_bits` rotates, rounds by GPTAQ in ranges searched by squared error, and learns the scales on the float model's
predictions; here with and without the rotation and the learning, beside methods it was made of and rivals of its kind,
all at equal bits: groups of 64 with a bfloat16 scale and a zero point (catalogue D8, E3, E4, E13, H2, J19).

Paper: none; the parts are those of QuaRot (arXiv:2404.00456), GPTAQ (arXiv:2504.02692) and PV-Tuning
(arXiv:2405.14852).

Expected: the whole better than every single method, by more at two bits than at three, and each part worth having.
Choices are made with `--config.evaluation.part=development`.

Cost: not measured as a whole; an estimate from single rows is eight hours and 8 GB on 2 cores.

    python -m experiments.run --config=configs/weight_only/few_bits.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults

FORMATS = ("int2_g64_affine", "int3_g64_affine")
SINGLE = ("gptq", "gptaq", "decoupleq")


def get_config() -> ml_collections.ConfigDict:
    config = defaults("few_bits")
    config.replicates = 3
    config.recipe = {"methods": SINGLE, "format": FORMATS}
    config.extra = {
        "few_bits": {"format": FORMATS, "rotated": (True, False), "steps": (64, 0)},
        "tesseraq": {"format": FORMATS, "steps": 200},
    }
    config.calibration = {"windows": 16, "length": 512, "batch": 2}
    whole = "few_bits {} True 64"
    config.claims = tuple(
        (whole.format(f), worse.format(f))
        for f in FORMATS
        for worse in (*(f"{m} {{}}" for m in (*SINGLE, "tesseraq")), "few_bits {} False 64", "few_bits {} True 0")
    )
    return config
