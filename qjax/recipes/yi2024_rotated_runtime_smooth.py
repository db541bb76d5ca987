"""Rotated Runtime Smooth, by Yi et al. 2024 (arXiv:2409.20361): a rotation, then channels smoothed as they come.

Section 3: the network rotated as in QuaRot, weights by GPTQ in 4 bits with a scale an output, inputs divided by the
maxima of their own channels in groups of 128, found at run time, and rounded with a scale a token; keys and values in 4
bits with a zero point a head.
"""

from __future__ import annotations

from typing import Literal

from qjax import ranges, transforms
from qjax.transforms.contract import Chain


def rotated_runtime_smooth(
    format: str = "int4_channel",
    activations: str = "int4",
    group: int = 128,
    cache: str | None = "int4_affine",
    method: Literal["gptq", "rtn"] = "gptq",
    rotated: bool = True,
) -> Chain:
    """Rotate, round the weights, smooth and round their inputs. Catalogue H6.

    `rotated=False` is the paper's Runtime Smooth alone; None leaves the cache in float.
    """
    return transforms.chain(
        transforms.rotate() if rotated else (),
        transforms.round_by(method, format, range=ranges.mse()),
        transforms.runtime_smooth(activations, group=group),
        () if cache is None else transforms.cache_quantize(cache, cache),
    )
