"""The better a low-rank term knows the inputs, the more of the error it recovers.

RTN at int3_g64_affine, then rank 32 by plain SVD in 8 bits (LoRC, rank 8), by mean |x| (LQER), by the diagonal and by
the whole Gram matrix (QERA), behind GPTQ (EoRA) and with factors shared by q, k, v and gate, up (GlowQ) (catalogue
F1, F2, F3, F5, F6).

Paper: QERA (Zhang et al. 2024, arXiv:2410.06040): exact at or below approximate at or below LQER in perplexity; EoRA
(Liu et al. 2024, arXiv:2410.21271): +31.31 % ARC-easy and +12.88 % ARC-challenge on LLaMA3-8B at 4 bits and 2:4
sparsity; GlowQ (An et al. 2026, arXiv:2603.25385): WikiText-2 perplexity -0.17 % against its baselines.

Expected: the same order; rank 32 on matrices 576 wide is not small, and the bits of the factors are in the table.

Cost: not measured yet; an estimate from the quickstart's rows is 120 minutes and 4 GB on 2 cores.

    python -m experiments.run --config=configs/weight_only/low_rank_compensation.py
"""

from __future__ import annotations

import ml_collections

from experiments.settings import defaults


def get_config() -> ml_collections.ConfigDict:
    config = defaults("low_rank_compensation")
    config.replicates = 3
    config.recipe = {"methods": ("rtn", "lorc", "lqer"), "format": ("int3_g64_affine",)}
    config.extra = {
        "qera": {"format": "int3_g64_affine", "exact": (True, False)},
        "gptq": {"format": "int3_g64_affine"},
        "eora": {"format": "int3_g64_affine"},
        "glowq": {"format": "int3_g64_affine", "rank": 32},
    }
    config.calibration = {"windows": 8, "length": 512, "batch": 4}
    config.claims = (
        ("lqer int3_g64_affine", "rtn int3_g64_affine"),
        ("qera True int3_g64_affine", "lqer int3_g64_affine"),
        ("qera True int3_g64_affine", "qera False int3_g64_affine"),
        ("eora int3_g64_affine", "gptq int3_g64_affine"),
    )
    return config
