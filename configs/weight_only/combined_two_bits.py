"""Two bits: what helped most in the methods of others, together, and each part taken away.

`few_bits` rotates, rounds by GPTAQ in ranges searched by squared error, and learns the scales on the float model's
predictions; here with and without the rotation and the learning, beside methods it was made of and a rival of its kind,
all in groups of 64 with a zero point (catalogue E4, E13, H2, J19). Scales have 16 bits, decoupleQ's offsets too.

Paper: none; the parts are those of QuaRot (arXiv:2404.00456), GPTAQ (arXiv:2504.02692) and PV-Tuning
(arXiv:2405.14852).

Expected: the whole better than every single method, and each part worth having; recorded so. Rotating the residual
stream gives the head weights of its own, which the bits of the whole model count. Choices were made with
`--config.evaluation.part=development`; the report part is for this run alone.

Cost: two and a half hours and 10 GB on 2 cores.

    python -m experiments.run --config=configs/weight_only/combined_two_bits.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults

SINGLE = ("gptq", "gptaq", "decoupleq")


def get_config(study: str = "combined_two_bits", format: str = "int2_g64_affine") -> ml_collections.ConfigDict:
    config = defaults(study)
    config.replicates = 3
    config.within = "together"  # as recorded; by default GPTAQ would be measured sequentially
    config.recipe = {"methods": SINGLE, "format": (format,)}
    config.extra = {"few_bits": {"format": (format,), "rotated": (True, False), "steps": (64, 0)}}
    config.calibration = {"windows": 16, "length": 512, "batch": 2}
    whole = f"few_bits {format} True 64"
    worse = (*(f"{method} {format}" for method in SINGLE), f"few_bits {format} False 64", f"few_bits {format} True 0")
    config.claims = tuple((whole, row) for row in worse)
    return config
