"""LoftQ, by Li et al. 2023 (arXiv:2310.08659): quantization and low rank in turns, to start a fine-tuning from.

Catalogue P2. NF4, rank 16 and five steps in the paper; the factors stay trainable, `qjax.trainable(params,
where="lora")`.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def loftq(format: str = "nf4_g64", rank: int = 16, steps: int = 5) -> Chain:
    """Alternate rounding and SVD of the rest. Catalogue P2."""
    return transforms.chain(transforms.alternate(format, rank, steps=steps))
