"""EoRA, by Liu et al. 2024 (arXiv:2410.21271): training-free compensation of any compressed model.

Catalogue F5. The error of a weight that another method compressed, projected into the eigenspace of its inputs, is
added back at low rank: the same minimum as QERA's exact one, behind GPTQ. The paper's rank is 128 for 4096-wide
matrices.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def eora(format: str = "int3_g64_affine", rank: int = 32) -> Chain:
    """GPTQ, then the low-rank term of least output error. Catalogue F5."""
    return transforms.chain(
        transforms.gptq(format, order="activation"), transforms.low_rank(rank, scale="gram", store="float16")
    )
