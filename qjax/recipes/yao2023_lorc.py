"""ZeroQuant-V2's LoRC, by Yao et al. 2023 (arXiv:2303.08302): low rank compensation of rounding.

Catalogue F2. The error of the rounded weight is decomposed as it is, without data, and its first eight singular
directions are added back; the factors are themselves stored in 8 bits.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def lorc(format: str = "int4_g64", rank: int = 8, store: str = "int8") -> Chain:
    """Round to nearest, then a plain SVD of the error, in 8 bits. Catalogue F2."""
    return transforms.chain(transforms.rtn(format), transforms.low_rank(rank, store=store))
