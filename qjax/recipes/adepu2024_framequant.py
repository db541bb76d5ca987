"""FrameQuant: flexible low-bit quantization for transformers (Adepu et al. 2024, arXiv:2403.06082).

Catalogue E22. Both sides of a matrix in a redundant fusion frame, GPTQ on its 2-bit coefficients, two-sigma clipping.
"""

from __future__ import annotations

from qjax import solvers
from qjax.formats import as_format
from qjax.transforms import chain, quantize_with
from qjax.transforms.contract import Chain


def framequant(format: str = "int2", redundancy: float = 1.1, chunk: int = 8, clip: float = 2.0) -> Chain:
    """Coefficients in a tight frame; redundancy buys robustness in fractions of a bit. Catalogue E22."""
    f = as_format(format)
    name = f"framequant {f.name} x{redundancy:g}"
    return chain(
        quantize_with(
            solvers.framequant, f, name=name, statistics=("gram",), random=True, redundancy=redundancy, chunk=chunk,
            clip=clip,
        )
    )  # fmt: skip
