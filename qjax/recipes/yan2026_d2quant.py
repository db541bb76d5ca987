"""D²Quant, by Yan et al. 2026 (arXiv:2602.02546): a second scale for down projections, mean shifts behind attention.

Catalogue E14. The down projection's input channels get a scale of their own by alternating least squares, the weights
go through GPTAQ, and the mean deviation that quantized attention causes is added where the feed-forward part reads its
norm, measured behind it. The authors' code also rotates the network by default. With GPTQ, the other backend of theirs,
the streams drift further apart, and a shift that hides the drift from the feed-forward part takes away what it would do
against it: `configs/weight_only/d2quant.py` has both.
"""

from __future__ import annotations

from typing import Literal

from qjax import transforms
from qjax.transforms.contract import Chain


def d2quant(
    format: str = "int2_g64_affine",
    method: Literal["gptaq", "gptq", "rtn"] = "gptaq",
    dual: bool = True,
    shift: bool = True,
) -> Chain:
    """Dual scales, the weights by `method`, then the mean shift. Catalogue E14, D15.

    Raises:
        ValueError: a method that is none of these.
    """
    return transforms.chain(
        transforms.named(transforms.dual_scale(format), "*/ffn/down") if dual else (),
        transforms.round_by(method, format, order="activation"),
        transforms.named(transforms.mean_shift(), "*/ffn/gate", "*/ffn/up") if shift else (),
    )
