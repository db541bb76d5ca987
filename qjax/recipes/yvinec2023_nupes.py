"""NUPES, by Yvinec et al. 2023 (arXiv:2308.05600): integers that mean powers, one exponent a layer.

Catalogue E23. The exponent comes from a grid by the error of the output.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def nupes(format: str = "int4_g64") -> Chain:
    """Round to powers of the best exponent. Catalogue E23."""
    return transforms.chain(transforms.power(format))
