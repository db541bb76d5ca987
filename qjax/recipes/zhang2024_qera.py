"""QERA, by Zhang et al. 2024 (arXiv:2410.06040): the correction with the least output error, in closed form.

Catalogue F3. The paper adds rank 32 to 4-bit weights; "exact" whitens with the whole autocorrelation of the input,
"approx" with its diagonal.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def qera(format: str = "int4_g64", rank: int = 32, exact: bool = True) -> Chain:
    """Round to nearest, then the best low-rank correction of the output. Catalogue F3."""
    return transforms.chain(transforms.rtn(format), transforms.low_rank(rank, scale="gram" if exact else "diagonal"))
