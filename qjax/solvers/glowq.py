"""GlowQ: matrices that read one input repair their errors through one shared factor (catalogue F6).

An, Suh and Kim, "GlowQ: group-shared low-rank approximation for quantized LLMs", ICLR 2026 (arXiv:2603.25385): of
q, k, v or gate, up the errors are set side by side and the whole is decomposed, weighted by the root of the input's
covariance; x @ a is computed once and each matrix adds (x @ a) @ b_i.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import jax.numpy as jnp
from jax import Array

from qjax.solvers.lqer import low_rank
from qjax.solvers.whitening import Weighting


def shared(errors: Sequence[Array], rank: int, scale: Weighting = None) -> tuple[Array, tuple[Array, ...]]:
    """Factors `a [K, rank]` and one `b [rank, N_i]` for each of `errors [K, N_i]`, with the least joint error.

    Raises:
        ValueError: the matrices have different inputs, or the rank exceeds the smaller side of them joined.
    """
    if len({e.shape[0] for e in errors}) != 1:
        raise ValueError(f"a shared factor needs matrices of one input, got shapes {[e.shape for e in errors]}")
    joined = jnp.concatenate([e.astype(jnp.float32) for e in errors], axis=1)
    a, b = low_rank(joined, jnp.zeros_like(joined), rank, scale)
    cuts = list(accumulate(e.shape[1] for e in errors))[:-1]
    return a, tuple(jnp.split(b, cuts, axis=1))


def shrunk(gram: Array, alpha: float = 0.05) -> Array:
    """A Gram matrix `[K, K]` drawn towards the identity: (1 - alpha) H + alpha mean(diag H) I, the authors' default."""
    mean = jnp.mean(jnp.diagonal(gram))
    return (1 - alpha) * gram + alpha * mean * jnp.eye(gram.shape[0], dtype=gram.dtype)
