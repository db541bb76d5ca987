"""The objective of every layer-wise solver: the error at a layer's output, from the Gram matrix of its input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array


def objective(gram: Array, error: Array) -> Array:
    """tr(EᵀHE) = ‖XE‖² for the Gram matrix H = XᵀX `[K, K]` and an error (or a weight) E `[K, N]`; a scalar.

    >>> x, e = jnp.array([[1.0, 2.0], [0.0, 1.0]]), jnp.array([[1.0], [-1.0]])
    >>> bool(objective(x.T @ x, e) == ((x @ e) ** 2).sum())
    True
    """
    gram = gram.astype(error.dtype)
    return jnp.sum(error * jnp.matmul(gram, error, precision=jax.lax.Precision.HIGHEST))
