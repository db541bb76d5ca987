"""A square root of a Gram matrix, with which the error of a layer's output is the plain norm of a matrix.

For H = XᵀX and any S with SᵀS = H, ‖XE‖ = ‖SE‖; so the best low-rank approximation of SE (Eckart-Young), moved back by
S⁻¹, is the best correction of the output. Which root is taken does not matter: the symmetric one (QERA), one from
eigenvectors (EoRA) and a Cholesky factor (ASER) differ by a rotation that the singular vectors undo.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

RETRIES = 6


class Whitening(NamedTuple):
    """S = Lᵀ diag(scale), with SᵀS = H.

    `lower [K, K]`: Cholesky factor of the correlations of H, whose diagonal is one. `scale [K]`: root of the diagonal
    of H, zero for an input that was never active. `damp`: what was added to the correlations' diagonal to factor them.
    """

    lower: Array
    scale: Array
    damp: Array


Weighting = Array | Whitening | None
"""How much each input matters: one factor a channel `[K]`, a root of the Gram matrix, or all alike."""


@jax.jit
def whiten(gram: Array, damp: float | Array = 1e-6) -> Whitening:
    """The root of a Gram matrix `[K, K]`, float32.

    The diagonal is taken out before the factorization, so that a channel a thousand times larger than the others costs
    the others no digits, and damping means the same to every channel. It is raised tenfold up to six times while the
    factor is not finite (fewer tokens than channels leave a singular matrix).

    >>> h = jnp.array([[4.0, 1.0], [1.0, 9.0]])
    >>> s = apply(whiten(h, 0.0), jnp.eye(2))
    >>> bool(jnp.allclose(s.T @ s, h, rtol=1e-6)), float(s[1, 0])
    (True, 0.0)
    """
    gram = gram.astype(jnp.float32)
    scale = jnp.sqrt(jnp.diagonal(gram))
    alive = scale > 0
    inverse = _inverse(scale)
    identity = jnp.eye(gram.shape[0], dtype=jnp.float32)
    correlations = gram * inverse[:, None] * inverse[None, :]
    correlations = jnp.where(alive[:, None] & alive[None, :], correlations, identity)

    def cholesky(damp: Array) -> Array:
        return lax.linalg.cholesky(correlations + damp * identity)

    def retry(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        tries, damp, _ = state
        damp = jnp.maximum(damp * 10, jnp.float32(1e-7))
        return tries + 1, damp, cholesky(damp)

    def failed(state: tuple[Array, Array, Array]) -> Array:
        return (state[0] < RETRIES) & ~jnp.all(jnp.isfinite(state[2]))

    start = jnp.asarray(damp, jnp.float32)
    _, used, lower = lax.while_loop(failed, retry, (jnp.int32(0), start, cholesky(start)))
    return Whitening(lower, scale, used)


def apply(weighting: Weighting, error: Array) -> Array:
    """S E for an error `[K, N]`."""
    if weighting is None:
        return error
    if isinstance(weighting, Whitening):
        return jnp.matmul(weighting.lower.T, weighting.scale[:, None] * error, precision=lax.Precision.HIGHEST)
    return weighting[:, None] * error


def undo(weighting: Weighting, u: Array) -> Array:
    """S⁻¹ u for `u [K, r]`; zero at inputs that are never active."""
    if weighting is None:
        return u
    if isinstance(weighting, Whitening):
        solved = lax.linalg.triangular_solve(weighting.lower, u, left_side=True, lower=True, transpose_a=True)
        return _inverse(weighting.scale)[:, None] * solved
    return _inverse(weighting)[:, None] * u


def _inverse(scale: Array) -> Array:
    return jnp.where(scale > 0, 1 / jnp.where(scale > 0, scale, 1), 0)
