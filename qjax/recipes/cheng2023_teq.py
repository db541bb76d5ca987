"""TEQ, by Cheng et al. 2023 (arXiv:2310.10944): a trainable equivalent transformation in front of rounding.

Catalogue E17. One scale a channel, shared by the leaves that read it, trained by Adam at 1e-3; the paper takes 1000
steps for the whole model, here each block takes its own.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def teq(format: str = "int4_g64", steps: int = 200, rate: float = 1e-3) -> Chain:
    """Learn channel scales through the rounding, then round. Catalogue E17."""
    return transforms.chain(transforms.learned_scale(format, steps=steps, rate=rate), transforms.rtn(format))
