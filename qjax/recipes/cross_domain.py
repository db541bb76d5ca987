"""INT8 beside float32: nineteen weights in twenty rounded to 8 bits, the largest kept as they are.

Catalogue E28 (lossless compression of deep networks via cross-domain quantization properties).
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def int8_with_float_outliers(format: str = "int8", share: float = 0.05) -> Chain:
    """Take the largest twentieth out in float32, round the rest. Catalogue E28."""
    return transforms.chain(transforms.outliers(share, store="float32"), transforms.rtn(format))
