"""AdaRound, by Nagel et al. 2020 (arXiv:2004.10568): up or down? Adaptive rounding for post-training quantization.

Catalogue D3. The paper learns one layer after the other on its own output, by Adam for 10000 steps, with beta falling
from 20 to 2 after a warm-up of a fifth of them.
"""

from __future__ import annotations

from typing import Literal

import optax

from qjax import transforms
from qjax.formats import as_format
from qjax.reconstruct import AdaRound
from qjax.transforms.contract import Chain


def adaround(
    format: str = "int4_g64", steps: int = 10000, rate: float = 1e-2, scope: Literal["leaf", "block"] = "leaf"
) -> Chain:
    """Each weight to the neighbour that serves its layer's (or its block's) output best. Catalogue D3."""
    rule = AdaRound(as_format(format))
    return transforms.chain(transforms.learn(rule, optimizer=optax.adam(rate), steps=steps, scope=scope))
