"""Unsloth's dynamic 4-bit (2024): NF4 but for the modules that measure worst, which stay in 16 bits.

Catalogue E26. A tenth of the matrices, by the relative error of their output.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def unsloth_dynamic(format: str = "nf4_g64", share: float = 0.1) -> Chain:
    """Plan by measured error, then round what the plan gives up. Catalogue E26."""
    return transforms.chain(
        transforms.keep_worst(format, share),
        transforms.masked(transforms.rtn(format), transforms.planned_to_quantize),
    )
