"""QuaRot, by Ashkboos et al. 2024 (arXiv:2404.00456): 4-bit weights, activations and cache in a rotated network.

Section 4: random Hadamard rotations in the weights (residual stream, heads) and online (queries and keys, across heads
before the output projection, the input of the down projections); weights by GPTQ or round to nearest, one scale an
output channel whose range is searched for the least squared error; activations symmetric, a scale a token, in 0.9 of
its range; keys and values with a zero point, a scale a head. The authors shrink the cache's range to 0.95 besides,
which is not done here. Heads are mixed where their number has a Hadamard matrix (9 has none).
"""

from __future__ import annotations

from typing import Literal

from qjax import ranges, transforms
from qjax.transforms.contract import Chain


def quarot(
    format: str = "int4_channel",
    activations: str | None = "int4",
    cache: str | None = "int4_affine",
    method: Literal["gptq", "rtn"] = "gptq",
    rotated: bool = True,
    clip: float = 0.9,
    draw: int = 0,
) -> Chain:
    """Rotate, round the weights, their inputs and the cache. `rotated=False` is its baseline. Catalogue H2.

    `clip` is the share of a token's range that its activations keep, `draw` the number of the random rotation. None
    leaves activations or cache in float.
    """
    return transforms.chain(
        transforms.rotate(draw=draw) if rotated else (),
        transforms.round_by(method, format, range=ranges.mse()),
        () if activations is None else transforms.act_quantize(activations, range=ranges.shrunk(clip)),
        () if cache is None else transforms.cache_quantize(cache, cache),
    )
