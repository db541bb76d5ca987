"""The largest singular values of a matrix and their vectors, without computing all the others."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array, lax

LARGE, SWEEPS = 8, 10


def largest(m: Array, rank: int) -> tuple[Array, Array, Array]:
    """`u [K, rank]`, `s [rank]`, `vt [rank, N]` of `m [K, N]` float32, as `jnp.linalg.svd` orders them.

    Eigenvectors of m mᵀ are several times faster than a decomposition of m, but float32 loses in the product all
    singular values below a thousandth of the first, and one outlier channel makes the first that large. So the eight
    largest directions are found by subspace iteration and taken out before the product is formed; what both find is
    put in order by a decomposition of the matrix in their common span. Near the full rank m itself is decomposed.
    """
    if rank + LARGE >= min(m.shape):
        u, s, vt = jnp.linalg.svd(m, full_matrices=False)
        return u[:, :rank], s[:rank], vt[:rank]
    if m.shape[0] > m.shape[1]:
        v, s, ut = largest(m.T, rank)
        return ut.T, s, v.T

    def sweep(_: Array, q: Array) -> Array:
        return _basis(_product(m, _basis(_product(m.T, q))))

    start = _product(m, jax.random.normal(jax.random.key(0), (m.shape[1], LARGE)))
    first = lax.fori_loop(0, SWEEPS, sweep, _basis(start))
    rest = m - _product(first, _product(first.T, m))
    _, vectors = jnp.linalg.eigh(_product(rest, rest.T))
    span = _basis(jnp.concatenate([first, vectors[:, -rank:]], axis=1))
    u, s, vt = jnp.linalg.svd(_product(span.T, m), full_matrices=False)
    return _product(span, u[:, :rank]), s[:rank], vt[:rank]


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)


def _basis(a: Array) -> Array:
    return jnp.linalg.qr(a)[0]
