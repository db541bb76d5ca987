"""FlatQuant, by Sun et al. 2024 (arXiv:2410.09426): learned affine maps that flatten weights and activations.

The authors' scripts for W4A4KV4: Kronecker-factored maps and channel scales learned for each block on 128 windows in 15
epochs at a rate of 5e-3, weights symmetric with a scale an output, activations symmetric with one a token, keys and
values with a zero point a head. Learned clipping is left out: the weights' ranges are searched instead, and the map on
keys and queries, learned there, is a Hadamard rotation here.
"""

from __future__ import annotations

from qjax import ranges, transforms
from qjax.transforms.contract import Chain


def flatquant(
    format: str = "int4_channel",
    activations: str = "int4",
    cache: str | None = "int4_affine",
    steps: int = 480,
    rate: float = 5e-3,
) -> Chain:
    """Learn the maps of each block, round the weights, their inputs and the cache. None leaves the cache in float."""
    chosen = [
        transforms.learn_affine(format, activations, steps=steps, rate=rate),
        transforms.rtn(format, range=ranges.mse()),
        transforms.act_quantize(activations),
    ]
    if cache is not None:
        scores = transforms.rotate(stream=False, values=False, down=False, heads=False)
        chosen = [scores, *chosen, transforms.cache_quantize(cache, cache)]
    return transforms.chain(*chosen)
