"""FP8-BERT, by Li et al. 2023 (arXiv:2312.05725): transformers in 8-bit floats after training.

Weights and activations in E4M3, each tensor with one scale that maps its largest magnitude, in calibration that of the
activations, to the largest of the format.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def fp8_bert(format: str = "fp8_e4m3_tensor", activations: str = "fp8_e4m3_tensor", static: bool = True) -> Chain:
    """Rounded weights and rounded inputs, one scale a tensor. Catalogue G21."""
    return transforms.chain(transforms.rtn(format), transforms.act_quantize(activations, static=static))
