"""SpinQuant, by Liu et al. 2024 (arXiv:2405.16406): rotations learned by Cayley SGD for 4-bit inference.

The authors' scripts: 100 steps at a rate of 1.5 that falls to zero by a cosine, on a network whose activations have a
zero point and a scale a token and whose weights are float if GPTQ follows; then GPTQ or round to nearest, one scale an
output whose range is searched, and keys and values with a zero point a head. The Hadamard rotations of queries, keys
and down projections stay online (SpinQuant_had). Eight windows of 2048 tokens make a step there, one batch here.
"""

from __future__ import annotations

from typing import Literal

from qjax import ranges, transforms
from qjax.transforms.contract import Chain


def spinquant(
    format: str = "int4_channel",
    activations: str = "int4_affine",
    cache: str | None = "int4_affine",
    method: Literal["gptq", "rtn"] = "gptq",
    steps: int = 100,
    rate: float = 1.5,
) -> Chain:
    """Learn rotations, round the weights, their inputs and the cache. Catalogue H3.

    None leaves the cache in float.
    """
    return transforms.chain(
        transforms.learn_rotation(activations, None if method == "gptq" else format, steps=steps, rate=rate),
        transforms.round_by(method, format, range=ranges.mse()),
        transforms.act_quantize(activations),
        () if cache is None else transforms.cache_quantize(cache, cache),
    )
