"""CrossQuant, by Liu et al. 2024 (arXiv:2410.07505): activations under a scale of their row and one of their column.

An activation x_ij has the step t_i^alpha c_j^(1-alpha)/(2^(b-1)-1), with t the largest magnitude of its token and c
that of its channel, over the tokens of the batch. Channels with outliers get steps of their own, so that fewer of the
other numbers become zero.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def crossquant(format: str = "int8", bits: int = 8, alpha: float = 0.15) -> Chain:
    """Rounded weights, and inputs of `bits` bits under row and column scales in float32. Catalogue G13."""
    inputs = f"int{bits}_cross{alpha:g}_narrow_f32"
    return transforms.chain(transforms.rtn(format), transforms.act_quantize(inputs))
