"""GPTAQ: finetuning-free quantization with asymmetric calibration (Li et al. 2025, arXiv:2504.02692).

Catalogue E4. GPTQ whose target is the output of the float model on its own inputs; `alpha` is the factor 0.25 of the
authors' code, which the paper does not have.
"""

from __future__ import annotations

from typing import Literal

from qjax.transforms import chain
from qjax.transforms import gptaq as transform
from qjax.transforms.contract import Chain


def gptaq(
    format: str = "int4_g64",
    order: Literal["none", "activation"] = "activation",
    groups: Literal["static", "stale", "fresh"] = "static",
    damp: float = 0.01,
    alpha: float = 0.25,
) -> Chain:
    """GPTQ towards the float model's output. Catalogue E4."""
    return chain(transform(format, order=order, groups=groups, damp=damp, alpha=alpha))
