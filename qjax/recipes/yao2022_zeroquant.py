"""ZeroQuant, by Yao et al. 2022 (arXiv:2206.01861): 8-bit transformers with an activation scale per token.

Its quantizers alone, without the distillation that makes up the rest of the paper (row G1 of the catalogue stays
open): 8-bit weights and 8-bit activations whose scale is found anew for each token. With one scale for all tokens it
is the static-shape baseline the paper (and SmoothQuant) compares with.
"""

from __future__ import annotations

from typing import Literal

from qjax import transforms
from qjax.transforms.contract import Chain

Granularity = Literal["token", "tensor"]
# The format of an activation says what shares a scale: along its last axis, or everything.
ACTIVATIONS: dict[Granularity, str] = {"token": "int8", "tensor": "int8_tensor"}


def w8a8(format: str = "int8", granularity: Granularity = "token") -> Chain:
    """Rounded weights and rounded inputs, one dynamic input scale per "token" or per "tensor". Catalogue C1, C3."""
    return transforms.chain(transforms.rtn(format), transforms.act_quantize(ACTIVATIONS[granularity]))
