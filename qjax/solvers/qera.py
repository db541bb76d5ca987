"""QERA: the low-rank correction that leaves the least error at the layer's output, in closed form.

Zhang et al., "QERA: an analytical framework for quantization error reconstruction", 2024 (arXiv:2410.06040): with
R = E[xxᵀ], C = R^(-1/2) SVD_r(R^(1/2) (W - Ŵ)) minimizes E‖x(W - Ŵ - C)‖² (theorem 1, exact); if the inputs were
uncorrelated, R^(1/2) would be the root mean square of each (theorem 2, approximate). Catalogue F3. EoRA (Liu et al.
2024, arXiv:2410.21271) projects the error into the eigenspace of the same R and arrives at the same minimum: catalogue
F5.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from qjax.qarray import QArray
from qjax.solvers.lqer import low_rank
from qjax.solvers.whitening import whiten


def exact(w: Array, q: QArray | Array, gram: Array, rank: int, *, damp: float = 1e-6) -> tuple[Array, Array]:
    """Factors `a [K, rank]`, `b [rank, N]` of the correction with the least ‖X(W - Ŵ - ab)‖; `gram [K, K]` is XᵀX."""
    return low_rank(w, q, rank, whiten(gram, damp))


def approximate(w: Array, q: QArray | Array, gram: Array, rank: int) -> tuple[Array, Array]:
    """The same for uncorrelated inputs: only the diagonal of `gram [K, K]` counts."""
    return low_rank(w, q, rank, jnp.sqrt(jnp.diagonal(gram.astype(jnp.float32))))
