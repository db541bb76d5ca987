"""FlexRound, by Lee et al. 2023 (arXiv:2306.00317): learnable rounding based on element-wise division.

Catalogue D6. The paper reconstructs block by block, by Adam for 5000 steps; for language models its rates lie between
1e-4 and 5e-3.
"""

from __future__ import annotations

import optax

from qjax import transforms
from qjax.formats import as_format
from qjax.reconstruct import FlexRound
from qjax.transforms.contract import Chain


def flexround(format: str = "int4_g64", steps: int = 5000, rate: float = 1e-3) -> Chain:
    """Each weight divided by a learned factor before it is rounded, block by block. Catalogue D6."""
    rule = FlexRound(as_format(format))
    return transforms.chain(transforms.learn(rule, optimizer=optax.adam(rate), steps=steps))
