"""LQER: Low-Rank Quantization Error Reconstruction for LLMs (Zhang et al. 2024, arXiv:2402.02446).

Catalogue F1. The error of the rounded weight, scaled by the mean |x| of each input channel (the paper's L2QER), is
added back as a product of two thin matrices. The paper's rank is 32 for W4 and 256 for W2.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def lqer(format: str = "int4_g64", rank: int = 32) -> Chain:
    """Round to nearest, then a rank-`rank` correction. Catalogue F1."""
    return transforms.chain(transforms.rtn(format), transforms.low_rank(rank, scale="mean_abs"))
