"""A low-rank repair of a quantized matrix: LoRC, LQER, L²QER and, with a whitening, QERA and EoRA.

ZeroQuant-V2's LoRC (Yao et al. 2023) and LQER (Zhang et al. 2024) decompose the error of the weights as it is, L²QER
weighted by the mean size of each input (catalogue F1, F2). What minimizes the error of the output is in `qera`.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
from jax import Array

from qjax.qarray import QArray
from qjax.quantization import dequantize
from qjax.solvers import whitening
from qjax.solvers.singular import largest
from qjax.solvers.whitening import Weighting, Whitening


def low_rank(w: Array, q: QArray | Array, rank: int, scale: Weighting = None) -> tuple[Array, Array]:
    """The best rank-`rank` correction of `w - dequantize(q)`: `a [K, rank]`, `b [rank, N]`, so that `w ≈ q + a @ b`.

    Without `scale` this is LQER, the smallest error in the weights (Eckart-Young). With `scale [K]`, for instance the
    mean |x| of each input channel, it is L²QER: the error is weighted by `scale` before the decomposition and the
    weight is taken out of `a` again, so that channels with large inputs are repaired first. With a `Whitening` of the
    input's Gram matrix it is the smallest error of the output (QERA). A channel whose scale is zero is never seen by
    the layer's input and gets no correction.

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
    given = scale.scale if isinstance(scale, Whitening) else scale
    if given is not None and given.shape != w.shape[:1]:
        raise ValueError(f"scale has shape {given.shape}, expected one value per input channel: {w.shape[:1]}")
    return _low_rank(w, approximation, scale, rank=rank)


@partial(jax.jit, static_argnames=("rank",))
def _low_rank(w: Array, approximation: Array, scale: Weighting, *, rank: int) -> tuple[Array, Array]:
    error = w.astype(jnp.float32) - approximation.astype(jnp.float32)
    u, s, vt = largest(whitening.apply(scale, error), rank)
    return whitening.undo(scale, u), s[:, None] * vt
