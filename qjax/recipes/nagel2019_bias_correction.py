"""Bias correction, by Nagel et al. 2019 (arXiv:1906.04721, section 4.2): the mean error of a layer's output taken back.

Catalogue D15. E[x](W - Ŵ) is added as a bias to whatever quantized the weight.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def bias_correction(format: str = "int4_g64", paired: bool = False) -> Chain:
    """Round to nearest, then restore the mean of every output. Catalogue D15."""
    return transforms.chain(transforms.rtn(format), transforms.bias_correction(paired=paired))
