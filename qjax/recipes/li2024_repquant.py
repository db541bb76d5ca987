"""RepQuant, by Li et al. 2024 (arXiv:2402.05628): channel-wise scales made into one by the layer before.

Section 3: inputs behind a norm are calibrated with a scale and a zero point for each channel; a shift and a scale of
the norm's bias and gain, with their counterpart in the weights, turn them into one scale and zero point without a
change of any code. Ranges are the extremes here, where the authors learn both ends of each channel; left out are the
logarithmic quantizer of attention's weights, and their reconstruction of weights, in whose place GPTQ stands.
"""

from __future__ import annotations

from typing import Literal

from qjax import transforms
from qjax.transforms.contract import Chain


def repquant(
    format: str = "int4_channel",
    activations: str = "int4_tensor_affine",
    method: Literal["gptq", "rtn"] = "gptq",
    shift: bool = True,
) -> Chain:
    """Channels of one range, rounded weights, one static scale and zero point an input. Catalogue G15.

    Behind an RMSNorm, which has no bias, `shift=False` keeps the map free.
    """
    return transforms.chain(
        transforms.equal_ranges(shift=shift),
        transforms.round_by(method, format),
        transforms.act_quantize(activations, static=True),
    )
