"""Means restored behind a layer, gains tuned in front of it.

RTN with bias correction against the same and the float stream; GPTQ with norm tweaking (catalogue D14, D15).

Paper: Nagel et al. 2019 (arXiv:1906.04721): bias correction recovers most of 8-bit MobileNet; norm tweaking (Li et
al. 2023, arXiv:2309.02784): GPTQ at 2 bits usable on GLM-130B.

Expected: bias correction a small gain over RTN; norm tweaking at its small rate within the noise of one calibration
pass.

Cost: not measured yet; an estimate from the quickstart's rows is 120 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/weight_only/mean_corrections.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("mean_corrections")
    config.replicates = 3
    config.within = "sequential"  # means of both streams need it; every row alike
    config.recipe = {"methods": ("rtn", "bias_correction"), "format": ("int3_g64_affine",), "paired": (False, True)}
    config.extra = {"gptq": {"format": "int3_g64_affine"}, "norm_tweaking": {"format": "int3_g64_affine"}}
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (
        ("bias_correction int3_g64_affine True", "rtn int3_g64_affine"),
        ("norm_tweaking int3_g64_affine", "gptq int3_g64_affine"),
    )
    return config
