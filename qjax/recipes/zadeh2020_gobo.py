"""GOBO, by Zadeh et al. 2020 (arXiv:2005.03842): eight values a layer, and the unlikely weights in float32.

Catalogue E12. Outliers have a log density below -4 under the layer's normal distribution, about one weight in a
thousand.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def gobo(bits: int = 3, threshold: float = -4.0) -> Chain:
    """One small table a matrix, outliers apart. Catalogue E12."""
    return transforms.chain(transforms.gobo(bits, threshold=threshold))
