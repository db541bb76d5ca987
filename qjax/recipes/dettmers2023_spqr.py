"""SpQR: a sparse-quantized representation for near-lossless compression (Dettmers et al. 2023, arXiv:2306.03078).

Catalogue E10. Groups of 16 whose scales are 3-bit codes in tiles of 16, activation order, damping 1, about 1 % of the
weights kept apart. Zero points stay codes of the format, where the paper quantizes float zeros to 3 bits.
"""

from __future__ import annotations

import dataclasses

from qjax import solvers
from qjax.formats import Format, Int, as_format
from qjax.transforms import chain, quantize_with
from qjax.transforms.contract import Chain


def spqr(
    format: str = "int3_g16_affine", outliers: float = 0.01, scale_bits: int | None = 3, damp: float = 1.0
) -> Chain:
    """Small groups with quantized scales, and sparse outliers. Catalogue E10."""
    f = as_format(format)
    if scale_bits is not None:
        scale = Format(Int(scale_bits, signed=False), 16, scale="float16", rule="minmax", offset="minimum")
        f = dataclasses.replace(f, scale=scale)
    name = f"spqr {format} {outliers:g}"
    return chain(quantize_with(solvers.spqr, f, name=name, statistics=("gram",), outliers=outliers, damp=damp))
