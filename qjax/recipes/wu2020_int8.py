"""The INT8 workflow of "Integer quantization for deep learning inference", by Wu et al. 2020 (arXiv:2004.09602).

Catalogue B23. Weights by the largest magnitude of each output channel; activations with one static scale for a tensor,
calibrated as the largest magnitude, a percentile of 99.9, 99.99 or 99.999, or by entropy; the best of them is what a
run over `calibration` tells. Where the loss is too large, the most sensitive layers stay in float (their section 5.1
takes a layer at a time by the network's accuracy, `share` by the error of a layer's output). The quantization-aware
training that follows where that is not enough is `transforms.fine_tune`.
"""

from __future__ import annotations

from typing import Literal

from qjax import ranges, transforms
from qjax.ranges import Range
from qjax.transforms.contract import Chain

Calibration = Literal["max", "entropy", "99.9", "99.99", "99.999"]
CALIBRATIONS: dict[Calibration, Range | None] = {
    "max": None,
    "entropy": ranges.entropy(),
    "99.9": ranges.percentile(99.9),
    "99.99": ranges.percentile(99.99),
    "99.999": ranges.percentile(99.999),
}


def int8_workflow(calibration: Calibration = "99.99", share: float = 0.0, format: str = "int8_channel_narrow") -> Chain:
    """8-bit weights and static inputs; the `share` of the layers that round worst stays float. Catalogue B23."""
    inputs = transforms.act_quantize("int8_tensor_narrow", static=True, range=CALIBRATIONS[calibration])
    both = transforms.chain(transforms.rtn(format), inputs)
    if share == 0:
        return both
    return transforms.chain(
        transforms.keep_worst(format, share), transforms.masked(both, transforms.planned_to_quantize)
    )
