"""Signs and ternary numbers whose scale is a mean magnitude, as XNOR-Net and BitNet b1.58 train with them.

Catalogue K1, K2. Here they round a trained network's weights, where BitNet starts from the beginning.
"""

from __future__ import annotations

from qjax import ranges, transforms
from qjax.transforms.contract import Chain


def absmean(format: str = "int2_g64_narrow") -> Chain:
    """Round to nearest under the mean magnitude, in "binary", "int1_minimum" or "int2_narrow". Catalogue K1, K2.

    >>> [t.name for t in absmean("binary_g64")]
    ['rtn binary_g64']
    """
    return transforms.chain(transforms.rtn(format, range=ranges.absmean))
