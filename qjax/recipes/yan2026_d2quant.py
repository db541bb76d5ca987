"""D²Quant, by Yan et al. 2026 (arXiv:2602.02546): a second scale for down projections, mean shifts behind attention.

Catalogue E14. The down projection's input channels get a scale of their own by alternating least squares, the weights
go through GPTQ, and the mean deviation that quantized attention causes is added where the feed-forward part reads its
norm, measured behind it. The paper adds rotations and GPTAQ.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def d2quant(format: str = "int2_g64_affine", dual: bool = True, shift: bool = True) -> Chain:
    """Dual scales, GPTQ, then the mean shift. Catalogue E14, D15."""
    parts = [transforms.gptq(format, order="activation")]
    if dual:
        parts = [*transforms.named(transforms.dual_scale(format), "*/ffn/down"), *parts]
    if shift:
        parts += transforms.named(transforms.mean_shift(), "*/ffn/gate", "*/ffn/up")
    return transforms.chain(*parts)
