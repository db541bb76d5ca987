"""The objective of every layer-wise solver: the error at a layer's output, from the Gram matrix of its input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from qjax.statistics.second_moments import halvings


def objective(gram: Array, error: Array) -> Array:
    """tr(EᵀHE) = ‖XE‖² for the Gram matrix H = XᵀX `[K, K]` and an error (or a weight) E `[K, N]`; a scalar.

    >>> x, e = jnp.array([[1.0, 2.0], [0.0, 1.0]]), jnp.array([[1.0], [-1.0]])
    >>> bool(objective(x.T @ x, e) == ((x @ e) ** 2).sum())
    True
    """
    return jnp.sum(column_objectives(gram, error))


def column_objectives(gram: Array, error: Array) -> Array:
    """The same for each column: eᵀHe, `[..., N]`; `gram [..., K, K]` is symmetric, `error [..., K, N]`."""
    return _quadratic(gram.astype(error.dtype), error, halvings(error.shape[-2]))


def _quadratic(gram: Array, error: Array, halvings: int) -> Array:
    if halvings == 0:
        return jnp.sum(error * jnp.matmul(gram, error, precision=jax.lax.Precision.HIGHEST), axis=-2)
    middle = error.shape[-2] // 2
    upper, lower = error[..., :middle, :], error[..., middle:, :]
    beside = jnp.matmul(gram[..., :middle, middle:], lower, precision=jax.lax.Precision.HIGHEST)
    return (
        _quadratic(gram[..., :middle, :middle], upper, halvings - 1)
        + _quadratic(gram[..., middle:, middle:], lower, halvings - 1)
        + 2 * jnp.sum(upper * beside, axis=-2)
    )
