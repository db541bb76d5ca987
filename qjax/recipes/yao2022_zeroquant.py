"""ZeroQuant, by Yao et al. 2022 (arXiv:2206.01861): 8-bit transformers with an activation scale per token.

Its quantizers alone are `w8a8`: 8-bit weights and 8-bit activations whose scale is found anew for each token. With one
scale for all tokens it is the static-shape baseline the paper (and SmoothQuant) compares with. `zeroquant` adds the
distillation of one layer after the other (section 4.2).
"""

from __future__ import annotations

from typing import Literal

import optax

from qjax import transforms
from qjax.formats import as_format
from qjax.reconstruct import AdaQuant
from qjax.transforms.contract import Chain

Granularity = Literal["token", "tensor"]
# The format of an activation says what shares a scale: along its last axis, or everything.
ACTIVATIONS: dict[Granularity, str] = {"token": "int8", "tensor": "int8_tensor"}


def w8a8(format: str = "int8", granularity: Granularity = "token") -> Chain:
    """Rounded weights and rounded inputs, one dynamic input scale per "token" or per "tensor". Catalogue C1, C3."""
    return transforms.chain(transforms.rtn(format), transforms.act_quantize(ACTIVATIONS[granularity]))


def zeroquant(format: str = "int4_g64", activations: str = "int8", steps: int = 200, rate: float = 1e-2) -> Chain:
    """Group-wise weights, token-wise activations, and each block's weights trained to give the float block's output.

    The block before is quantized already, as in the paper; the rule is AdaQuant's, the weights straight through their
    rounding together with the steps, and rate (in steps of the grid) and number of updates are ours. Catalogue G1.
    """
    rule = AdaQuant(as_format(format))
    distilled = transforms.learn(rule, optimizer=optax.adam(rate), steps=steps)
    return transforms.chain(transforms.act_quantize(activations), distilled)
