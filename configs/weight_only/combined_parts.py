"""Two and three bits: what searching ranges and GPTAQ's rounding bring to the combination, before any learning.

`few_bits` without its last step, the learning of scales that `combined_two_bits` and `combined_three_bits` take away:
rotated, with ranges searched by squared error or least and largest values, rounded by GPTAQ or to nearest (catalogue
E4, H2).

Paper: none; the parts are those of QuaRot (arXiv:2404.00456) and GPTAQ (arXiv:2504.02692).

Expected: both parts worth having at both widths, and more at two bits.

    python -m experiments.run --config=configs/weight_only/combined_parts.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults

FORMATS = ("int2_g64_affine", "int3_g64_affine")


def get_config() -> ml_collections.ConfigDict:
    config = defaults("combined_parts")
    config.replicates = 3
    config.extra = {"few_bits": {"format": FORMATS, "method": ("gptaq", "rtn"), "searched": (True, False), "steps": 0}}
    config.calibration = {"windows": 16, "length": 512, "batch": 2}
    config.claims = tuple(
        (f"few_bits {fmt} gptaq True", f"few_bits {fmt} {fewer}")
        for fmt in FORMATS
        for fewer in ("gptaq False", "rtn True")
    )
    return config
