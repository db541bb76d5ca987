"""HQQ: half-quadratic quantization of large machine learning models (Badri and Shaji 2023).

Catalogue E7; https://mobiusml.github.io/hqq_blog. Without data, in minutes for any model. The authors keep zeros as
floats, so an affine format's integer zero points become minimums of the scale's type.
"""

from __future__ import annotations

import dataclasses

from qjax import solvers
from qjax.formats import as_format
from qjax.transforms import chain, quantize_with
from qjax.transforms.contract import Chain


def hqq(
    format: str = "int4_g64_affine", p: float = 0.7, beta: float = 10.0, kappa: float = 1.01, iterations: int = 20
) -> Chain:
    """Each group's offset (or scale) moved so that Σ|W - Ŵ|^p is small. Catalogue E7."""
    f = as_format(format)
    if f.offset == "zero_point":
        f = dataclasses.replace(f, offset="minimum")
    return chain(
        quantize_with(
            solvers.hqq, f, name=f"hqq {format}", p=p, beta=beta, kappa=kappa, iterations=iterations
        )
    )  # fmt: skip
