"""SmoothQuant, by Xiao et al. 2022 (arXiv:2211.10438): activations made easy to round before 8-bit inference.

Catalogue G5. The scale s = max|x|^alpha / max|w|^(1 - alpha) moves from the activations into the weights, then W8A8.
Other formats, and a cache in fewer bits, are for tables of methods at W4A4KV4; the paper has neither.
"""

from __future__ import annotations

from qjax import transforms
from qjax.transforms.contract import Chain


def smoothquant(
    alpha: float = 0.5, format: str = "int8", activations: str = "int8_tensor", cache: str | None = None
) -> Chain:
    """Smooth, round the weights, round the inputs (the paper's O2: per tensor, dynamic). Catalogue G5.

    None leaves the cache in float.
    """
    return transforms.chain(
        transforms.smooth(alpha=alpha),
        transforms.rtn(format),
        transforms.act_quantize(activations),
        () if cache is None else transforms.cache_quantize(cache, cache),
    )
