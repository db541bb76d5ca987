"""QuantEase: optimization-based quantization for language models (Behdin et al. 2023, arXiv:2309.01885).

Catalogue E6. The authors run 25 sweeps of coordinate descent from the weights, every third unquantized; their
outlier-aware variant keeps 0.5 % or 1 % of the weights apart.
"""

from __future__ import annotations

from typing import Literal

from qjax import solvers
from qjax.formats import as_format
from qjax.transforms import chain, quantize_with
from qjax.transforms.contract import Chain


def quantease(
    format: str = "int3_g64_affine",
    sweeps: int = 25,
    start: Literal["weights", "nearest", "gptq"] = "weights",
    relax: int = 3,
    outliers: float = 0.0,
) -> Chain:
    """Cyclic coordinate descent on the layer's error, with sparse outliers on request. Catalogue E6."""
    f = as_format(format)
    name = f"quantease {f.name}" + (f" outliers {outliers:g}" if outliers else "")
    return chain(
        quantize_with(
            solvers.quantease, f, name=name, statistics=("gram",), sweeps=sweeps, start=start, relax=relax,
            outliers=outliers,
        )
    )  # fmt: skip
