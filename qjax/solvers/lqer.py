"""A low-rank repair of a quantized matrix: LQER and L²QER (Zhang et al. 2024; catalogue F1)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from qjax.qarray import QArray
from qjax.quantization import dequantize


def low_rank(w: Array, q: QArray | Array, rank: int, scale: Array | None = None) -> tuple[Array, Array]:
    """The best rank-`rank` correction of `w - dequantize(q)`: `a [K, rank]`, `b [rank, N]`, so that `w ≈ q + a @ b`.

    Without `scale` this is LQER, the smallest error in the weights (Eckart-Young). With `scale [K]`, for instance the
    mean |x| of each input channel, it is L²QER: the error is weighted by `scale` before the decomposition and the
    weight is taken out of `a` again, so that channels with large inputs are repaired first. A channel whose scale is
    zero is never seen by the layer's input and gets no correction.

    Raises:
        ValueError: the shapes do not fit, or the rank is not between 1 and min(K, N).
    """
    approximation = dequantize(q) if isinstance(q, QArray) else q
    if w.ndim != 2 or approximation.shape != w.shape:
        raise ValueError(
            f"low_rank takes one matrix and its approximation, got shapes {w.shape}, {approximation.shape}"
        )
    if not 1 <= rank <= min(w.shape):
        raise ValueError(f"rank {rank} is not between 1 and {min(w.shape)}, the smaller side of a {w.shape} matrix")
    if scale is not None and scale.shape != w.shape[:1]:
        raise ValueError(f"scale has shape {scale.shape}, expected one value per input channel: {w.shape[:1]}")
    error = w.astype(jnp.float32) - approximation.astype(jnp.float32)
    weight = jnp.ones(w.shape[0], jnp.float32) if scale is None else scale.astype(jnp.float32)
    u, s, vt = jnp.linalg.svd(weight[:, None] * error, full_matrices=False)
    inverse = jnp.where(weight > 0, 1 / jnp.where(weight > 0, weight, 1), 0)
    a = inverse[:, None] * u[:, :rank]
    return a, s[:rank, None] * vt[:rank]
