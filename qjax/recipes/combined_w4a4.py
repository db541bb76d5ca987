"""Four bits for weights, activations and the cache by what helped most in the methods of others, together.

Random Hadamard rotations spread the outliers of channels (QuaRot, arXiv:2404.00456); outlier tokens in front of every
sequence take the massive activations out of it (PrefixQuant, arXiv:2410.05265), so that no rotation has to spread them;
activations and cache have a zero point a token and a head (SpinQuant, arXiv:2405.16406); and GPTQ towards the float
model's output (GPTAQ, arXiv:2504.02692) rounds the weights, so that each layer makes up for what those before it lost.
The combination is ours, and so is the share of a token's range that its activations keep, chosen on the development
part of the text; `configs/w4a4_combined.py` takes it apart.
"""

from __future__ import annotations

from typing import Literal

from qjax import ranges, transforms
from qjax.transforms.contract import Chain

Method = Literal["rtn", "gptq", "gptaq"]


def w4a4(
    format: str = "int4_channel",
    activations: str | None = "int4_affine",
    cache: str | None = "int4_affine",
    method: Method = "gptaq",
    rotated: bool = True,
    prefixed: bool = True,
    clip: float = 0.95,
    start: int = 1,
    ratio: float = 64.0,
) -> Chain:
    """Rotate, put outlier tokens in front, round the weights, their inputs and the cache.

    `clip` is the share of a token's range that its activations keep; `start` the id of the tokenizer's first token and
    `ratio` how many medians large an outlier token is, as in `prefixquant`. None leaves activations or cache in float.

    Raises:
        ValueError: a method that is none of "rtn", "gptq", "gptaq".
    """
    kept = None if clip == 1.0 else ranges.shrunk(clip)
    return transforms.chain(
        transforms.rotate(heads=False) if rotated else (),
        transforms.outlier_prefix(start, ratio) if prefixed else (),
        transforms.round_by(method, format, range=ranges.mse()),
        () if activations is None else transforms.act_quantize(activations, range=kept),
        () if cache is None else transforms.cache_quantize(cache, cache),
    )
