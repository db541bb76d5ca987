"""MXFP4, NVFP4 and int4 by the paired protocol.

Round-to-nearest at 4.25 bits a weight (int4_g64, MXFP4) and 4.5 bits (int4_g32, NVFP4), on five replicates of the
model: each moves every weight within its own cell of the file's Q4_1 grid, because on the grid itself the ranking of
4-bit formats can flip (catalogue A19, A20, A21, E1).

Papers: OCP Microscaling Formats v1.0 (2023); NVIDIA, Pretraining Large Language Models with NVFP4 (2025,
arXiv:2509.25149).

Expected: NVFP4 better than MXFP4 (smaller blocks, finer scales); at equal bits int4_g64 better than MXFP4, whose scales
are powers of two; NVFP4 against int4_g32 at equal bits open. Recorded in experiments/results/formats.json: all three
claims reproduced, NVFP4 better than int4_g32 by a tenth in log perplexity.

Cost: 25 rows, nearly all of it the evaluation of 32 windows; an hour and 6 GB on 2 cores with other work beside it.

    python -m experiments.run --config=configs/formats.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("formats")
    config.replicates = 5
    config.recipe = {"methods": ("rtn",), "format": ("int4_g64", "mxfp4", "int4_g32", "nvfp4")}
    config.claims = (
        ("rtn nvfp4", "rtn mxfp4"),
        ("rtn int4_g64", "rtn mxfp4"),
        ("rtn nvfp4", "rtn int4_g32"),
    )
    return config
