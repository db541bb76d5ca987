"""ResComp: rethinking residual errors in compensation-based quantization (Li et al. 2026, arXiv:2604.07955).

Catalogue E5. On top of GPTAQ, what repairs moved a row by is itself repaired, so that the target stays the output of
the original weights. `compensation` scales that term as `alpha` does GPTAQ's; with alpha = 0 it is their "GPTQ + ours".
"""

from __future__ import annotations

from typing import Literal

from qjax.transforms import chain, gptaq
from qjax.transforms.contract import Chain


def rescomp(
    format: str = "int3_g64_affine",
    order: Literal["none", "activation"] = "activation",
    groups: Literal["static", "stale", "fresh"] = "static",
    damp: float = 0.01,
    alpha: float = 0.25,
    compensation: float = 0.25,
) -> Chain:
    """GPTAQ with the compensation-aware error. Catalogue E5."""
    return chain(gptaq(format, order=order, groups=groups, damp=damp, alpha=alpha, compensation=compensation))
