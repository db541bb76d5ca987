"""DuQuant, by Lin et al. 2024 (arXiv:2406.01721): outliers distributed by two rotations around a permutation.

Section 3 and the authors' script for W4A4: smoothing with alpha 0.6, greedy rotations of blocks of 128 channels (256
steps) around one zigzag permutation, weights with a zero point an output and activations with one a token, rounded to
nearest in 0.8 and 0.9 of their ranges. Attention's own products stay in float unless a cache is named, and the variant
with learned clipping (DuQuant + LWC) is left out.
"""

from __future__ import annotations

from qjax import ranges, transforms
from qjax.transforms.contract import Chain


def duquant(
    format: str = "int4_affine",
    activations: str | None = "int4_affine",
    block: int = 128,
    steps: int = 256,
    alpha: float = 0.6,
    clip: tuple[float, float] = (0.8, 0.9),
    cache: str | None = None,
) -> Chain:
    """Smooth, balance, round; `clip` are the shares of the ranges of weights and activations. Catalogue H4.

    None leaves activations or cache in float.
    """
    return transforms.chain(
        transforms.smooth(alpha=alpha),
        transforms.balance_outliers(block, steps=steps),
        transforms.rtn(format, range=ranges.shrunk(clip[0])),
        () if activations is None else transforms.act_quantize(activations, range=ranges.shrunk(clip[1])),
        () if cache is None else transforms.cache_quantize(cache, cache),
    )
