"""Grids of sixteen values under one scale for 64 weights: which spacing suits the weights of a language model.

Round-to-nearest on five replicates of the model. Evenly spaced (int4), quantiles of the normal density (NF4), least
absolute error under an absmax scale (AF4), least squared error for a normal and a Laplace density (Lloyd-Max), a float
(E2M1), float and integer at once (flint), powers of two and of its square root, and sums of two powers of two (APoT,
SP2): catalogue A13, A25, A26, A28, J1, L1, L2, L3, L5.

Papers: Dettmers et al. 2023 (arXiv:2305.14314); Yoshida 2023 (arXiv:2306.06965); Max 1960; Guo et al. 2022 (ANT);
Miyashita et al. 2016 (arXiv:1603.01025); Li et al. 2020 (arXiv:1909.13144); Chang et al. 2021 (arXiv:2012.04240).

Expected: the grids made for a density better than int4, AF4 the best; powers of two the worst, because half of their
values lie below an eighth of the largest weight; sums of powers of two between powers of two and the densities' grids.

Cost: not measured as a whole; an estimate from one replicate on few windows is 90 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/scalar_grids.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults

GRIDS = ("int4_g64_narrow", "nf4_g64_bf16", "af4_g64", "lloyd4_normal_g64", "lloyd4_laplace_g64", "fp4_e2m1_g64")
GRIDS += ("flint4_g64", "log4_g64", "log4x2_g64", "apot4_g64", "sp2_4_g64")


def get_config() -> ml_collections.ConfigDict:
    config = defaults("scalar_grids")
    config.replicates = 5
    config.recipe = {"methods": ("rtn",), "format": GRIDS}
    config.claims = (
        ("rtn nf4_g64_bf16", "rtn int4_g64_narrow"),
        ("rtn af4_g64", "rtn nf4_g64_bf16"),
        ("rtn apot4_g64", "rtn log4_g64"),
        ("rtn lloyd4_normal_g64", "rtn log4_g64"),
    )
    return config
