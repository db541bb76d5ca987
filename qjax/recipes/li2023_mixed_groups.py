"""Range-aware groups, by Li et al. 2023 (arXiv:2311.16442): most groups in 2 bits, those of largest range in 4.

Catalogue E24. A tenth of the groups of 16 in 4 bits; groups are chosen for all outputs of a matrix together.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def mixed_groups(format: str = "int2_g16_affine", high: str = "int4_g16_affine", share: float = 0.1) -> Chain:
    """Round each group in one of two widths. Catalogue E24."""
    return transforms.chain(transforms.mixed_groups(format, high, share=share))
