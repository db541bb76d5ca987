"""TesseraQ, by Li and Panda 2024 (arXiv:2410.19103): ultra low-bit quantization with block reconstruction.

Catalogue D8. On the weights that AWQ has scaled: twenty rounds of 250 steps of Adam at 1e-3 on each block's output, a
growing share of the roundings decided in front of each, scales learned beside them. The authors start from AWQ's
clipped ranges too; here the factors of the scales, which begin at 1, are what shrinks a range.
"""

from __future__ import annotations

from qjax import transforms
from qjax.formats import as_format
from qjax.reconstruct import TesseraQ, progressive_rounding
from qjax.reconstruct.tesseraq import SOFT
from qjax.transforms.contract import Chain


def tesseraq(format: str = "int2_g64_affine", steps: int = 5000, rate: float = 1e-3) -> Chain:
    """AWQ's scaling, then roundings decided a share at a time and scales tuned, block by block. Catalogue D8."""
    optimizer = progressive_rounding(rate, every=max(1, steps // len(SOFT)))
    learned = transforms.learn(TesseraQ(as_format(format)), optimizer=optimizer, steps=steps)
    return transforms.chain(transforms.awq(format), learned)
