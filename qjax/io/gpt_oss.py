"""gpt-oss: experts in MXFP4, each matrix a tensor of `blocks` and one of `scales` (catalogue U4).

As in openai/gpt-oss and transformers' `integrations/mxfp4.py`: [experts, outputs, inputs / 32, 16] bytes
of two codes, the first in the low half, and [experts, outputs, inputs / 32] bytes of a power of two, 127 for one.
"""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
import numpy as np

from qjax.formats.elements import E2M1
from qjax.io.compressed_tensors import BY_NAME
from qjax.io.layout import Scheme, read
from qjax.qarray import QArray

ROWS = Scheme(BY_NAME["mxfp4-pack-quantized"], E2M1, (32, 1))


def read_experts(name: str, blocks: np.ndarray, scales: np.ndarray) -> QArray:
    """The matrices [experts, inputs, outputs] of `<name>_blocks` and `<name>_scales`, both uint8.

    Raises:
        ValueError: another dtype or shape, or a scale that is NaN; names the tensor.
    """
    for tensor, a, axes in (("blocks", blocks, 4), ("scales", scales, 3)):
        if a.dtype != np.uint8 or a.ndim != axes or not a.size:
            raise ValueError(f"{name}_{tensor} is {a.dtype.name}{list(a.shape)}, gpt-oss has uint8 of {axes} axes")
    experts, outputs, groups, half = blocks.shape
    if half != 16 or scales.shape != blocks.shape[:3]:
        raise ValueError(f"{name}_blocks and _scales have shapes {blocks.shape} and {scales.shape}, which do not agree")
    tensors = {"weight_packed": blocks.reshape(-1, 16 * groups), "weight_scale": scales.reshape(-1, groups)}
    q = read(name, tensors, ROWS, (32 * groups, experts * outputs))
    (scale,) = q.scales
    assert not isinstance(scale, QArray)

    def cut(a: jnp.ndarray) -> jnp.ndarray:  # rows of all experts stand beside each other
        return jnp.moveaxis(a.reshape(-1, experts, outputs), 1, 0)

    return replace(q, codes=cut(q.codes), scales=(cut(scale),))
