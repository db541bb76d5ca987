"""OutlierTune, by Wang et al. 2024 (arXiv:2406.18832): static scales for each channel, dequantized beforehand.

Each channel of an input has a static scale, which is multiplied into the weights before those are rounded
(pre-execution of dequantization), after a shift to the middle of its range (symmetrization), so that the product is one
of plain integers. The defaults are the 6-bit setting of the paper's title claim; the ranges are the extremes, for want
of the authors' code.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def outliertune(format: str = "int6_channel", activations: str = "int6_tensor_narrow", shift: bool = True) -> Chain:
    """Channels of one range, rounded weights, one static scale an input. Catalogue G16.

    Behind an RMSNorm, which has no bias, `shift=False` keeps the map free.
    """
    return transforms.chain(
        transforms.equal_ranges(shift=shift), transforms.rtn(format), transforms.act_quantize(activations, static=True)
    )
