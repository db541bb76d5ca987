"""TWN: ternary weights by a threshold on the mean magnitude (Li et al. 2016, arXiv:1605.04711; catalogue K2, K34, K36).

Per group of weights it is FGQ's ternarization without retraining (Mellempudi et al. 2017, arXiv:1705.01462).
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax import Array

from qjax import blocks
from qjax.formats.format import Format
from qjax.formats.integer import Int
from qjax.formats.rules import quotient
from qjax.formats.spelling import as_format
from qjax.qarray import QArray
from qjax.solvers.nearest import rtn


def twn(w: Array, fmt: Format | str = "int2_narrow", *, threshold: float = 0.7) -> QArray:
    """`w [..., K, N]` as alpha t: t = sign(w) where |w| > threshold mean|w|, else 0; alpha the mean of those |w|.

    Mean and alpha are those of each block of `fmt` along K, which holds -1, 0 and 1 under an absmax scale. Alpha is the
    least squares scale of these t; 0.7 approximates the best threshold for normal and uniform weights (eq. 6-8).

    >>> from qjax.quantization import dequantize
    >>> dequantize(twn(jnp.array([[1.0], [-0.1], [0.5], [-1.5]]), "int2_narrow_f32"))[:, 0].tolist()
    [1.25, 0.0, 0.0, -1.25]

    Raises:
        ValueError: another format, or a threshold that is not positive.
    """
    fmt = as_format(fmt)
    if fmt.element != Int(2, narrow=True) or fmt.rule != "absmax" or fmt.reach is not None or fmt.alpha is not None:
        raise ValueError(f"twn makes ternary weights, int2_narrow of any blocks, not {fmt.name}")
    if not threshold > 0:
        raise ValueError(f"threshold {threshold} of twn must be positive")
    core, block = w.shape[-2:], (fmt.block, fmt.across)
    padding = blocks.padding_for(core, block)
    top = jnp.float32(np.finfo(np.float32).max)
    size = jnp.clip(jnp.abs(w.astype(jnp.float32)), 0, top)
    x, inside = blocks.split(blocks.pad(size, padding), block)
    there, _ = blocks.split(blocks.pad(jnp.ones_like(size), padding), block)
    unit = jnp.max(x, axis=inside, keepdims=True)
    x = quotient(x, jnp.where(unit == 0, jnp.float32(1), unit))
    mean = jnp.sum(x, axis=inside, keepdims=True) / jnp.sum(there, axis=inside, keepdims=True)
    kept = (x > jnp.float32(threshold) * mean).astype(jnp.float32)
    # Where none is above the threshold (zeros, or one magnitude under a threshold of 1) alpha is zero, and t.
    count = jnp.maximum(jnp.sum(kept, axis=inside, keepdims=True), 1)
    alpha = jnp.sum(x * kept, axis=inside, keepdims=True) / count * unit
    levels = (alpha * kept).reshape(*w.shape[:-2], *(n + p for n, p in zip(core, padding, strict=True)))
    return rtn((jnp.sign(w.astype(jnp.float32)) * blocks.unpad(levels, padding)).astype(w.dtype), fmt)
