"""SmoothQuant, by Xiao et al. 2022 (arXiv:2211.10438): activations made easy to round before 8-bit inference.

Catalogue G5. The scale s = max|x|^alpha / max|w|^(1 - alpha) moves from the activations into the weights, then W8A8.
"""

from __future__ import annotations

from qjax import transforms
from qjax.recipes.yao2022_zeroquant import ACTIVATIONS, Granularity
from qjax.transforms.contract import Chain


def smoothquant(alpha: float = 0.5, format: str = "int8", granularity: Granularity = "tensor") -> Chain:
    """Smooth, round the weights, round the inputs (the paper's O2: per tensor, dynamic). Catalogue G5."""
    return transforms.chain(
        transforms.smooth(alpha=alpha), transforms.rtn(format), transforms.act_quantize(ACTIVATIONS[granularity])
    )
