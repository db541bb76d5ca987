"""Outlier Suppression+, by Wei et al. 2023 (arXiv:2304.09145): channels shifted, then scaled.

Section 4: the shift is the middle of a channel's range, the scale brings what lies beyond a searched threshold down to
it, and both disappear in the LayerNorm before and the linear layer behind. The authors' configuration for OPT: static
activations with one scale and zero point, weights with one of each an output. Behind an RMSNorm, which has no bias,
they leave the shift out; for 4 bits they give each token its own scale, which is `static=False`.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def outlier_suppression_plus(
    format: str = "int8_affine",
    activations: str = "int8_tensor_affine",
    static: bool = True,
    points: int = 100,
    shift: bool = True,
) -> Chain:
    """Shift and scale, round the weights, round the inputs. Catalogue G7."""
    return transforms.chain(
        transforms.shift_and_scale(format, activations, points=points, shift=shift),
        transforms.rtn(format),
        transforms.act_quantize(activations, static=static),
    )
