"""LLM-MQ's sparse part, by Li et al. 2023: the largest weights in float16 beside a low-bit matrix.

Catalogue M13 (whose bit allocation by integer programming is not here). Half a percent of each matrix, by magnitude.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def llm_mq(format: str = "int3_g64_affine", share: float = 0.005) -> Chain:
    """Take the largest weights out, round the rest. Catalogue M13."""
    return transforms.chain(transforms.outliers(share), transforms.rtn(format))
