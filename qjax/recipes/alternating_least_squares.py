"""Alternating least squares: scales given codes, codes given scales, on the layer's error.

What decoupleQ, QuantEase and HQQ share, without their particulars: from GPTQ's result, never worse than it.
"""

from __future__ import annotations

from typing import Literal

from qjax import solvers
from qjax.formats import as_format
from qjax.transforms import chain, quantize_with
from qjax.transforms.contract import Chain


def alternating(format: str = "int3_g64_affine", rounds: int = 5, start: Literal["nearest", "gptq"] = "gptq") -> Chain:
    """Least squares for the groups' scales and offsets and coordinate descent for the codes, in turns."""
    f = as_format(format)
    return chain(quantize_with(solvers.alternating, f, statistics=("gram",), rounds=rounds, start=start))
