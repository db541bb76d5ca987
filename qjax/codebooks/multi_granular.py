"""Embeddings in product codes, coarser for rare rows: differentiable, with shared codebooks (catalogue C13).

Kang et al., "Learning multi-granular quantized embeddings for large-vocab categorical features in recommender systems",
WWW 2020 companion (arXiv:2002.08530), MGQE; without groups it is DPQ-VQ (Chen et al. 2020, arXiv:1908.09756). A row of
the table is cut into subspaces, each its nearest centroid; rows of a rare group may only use the first few centroids,
so that their codes are shorter, and the centroids are shared by all groups.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax


class ProductCodes(NamedTuple):
    """codes [rows, subspaces] int32; codebooks [subspaces, centroids, width / subspaces] float32."""

    codes: Array
    codebooks: Array


def product_codes(x: Array, codebooks: Array, allowed: Array) -> Array:
    """The nearest of the first `allowed` centroids in every subspace; of equal ones the first.

    x: [..., width] float32; codebooks: [subspaces, centroids, width / subspaces]; allowed: [...] int32, at least 1.
    Returns [..., subspaces] int32.

    >>> codebooks = jnp.array([[[0.0], [4.0], [1.0]]])
    >>> product_codes(jnp.array([[0.9], [0.9]]), codebooks, jnp.array([3, 2])).tolist()
    [[2], [0]]
    """
    subspaces, centroids, part = codebooks.shape
    parts = x.reshape(*x.shape[:-1], subspaces, 1, part)
    books = codebooks.reshape((1,) * (x.ndim - 1) + codebooks.shape)
    distance = jnp.sum((parts - books) ** 2, axis=-1)
    number = jnp.arange(centroids, dtype=jnp.int32).reshape((1,) * x.ndim + (-1,))
    distance = jnp.where(number < allowed[..., None, None], distance, jnp.inf)
    return jnp.argmin(distance, axis=-1).astype(jnp.int32)


def product_values(codes: Array, codebooks: Array) -> Array:
    """The rows [..., width] that codes [..., subspaces] stand for."""
    subspace = jnp.arange(codebooks.shape[0], dtype=jnp.int32)
    found = codebooks[jnp.broadcast_to(subspace.reshape((1,) * (codes.ndim - 1) + (-1,)), codes.shape), codes]
    return found.reshape(*codes.shape[:-1], -1)


@functools.partial(jax.custom_vjp)
def product_lookup(x: Array, codebooks: Array, allowed: Array) -> Array:
    """The rows x [..., width] rounded to their centroids, with the gradient of x itself and none for the codebooks.

    Codebooks learn from `product_distance`, which the paper's DPQ-VQ adds to the loss.

    >>> codebooks = jnp.array([[[0.0], [4.0], [1.0]]])
    >>> jax.grad(lambda x: jnp.sum(3 * product_lookup(x, codebooks, jnp.array([3]))))(jnp.array([[0.9]])).tolist()
    [[3.0]]
    """
    return product_values(product_codes(x, codebooks, allowed), codebooks)


def _forward(x: Array, codebooks: Array, allowed: Array) -> tuple[Array, tuple[Array, Array]]:
    return product_lookup(x, codebooks, allowed), (codebooks, allowed)


def _backward(kept: tuple[Array, Array], g: Array) -> tuple[Array, Array, np.ndarray]:
    codebooks, allowed = kept
    return g, jnp.zeros_like(codebooks), np.zeros(allowed.shape, jax.dtypes.float0)


product_lookup.defvjp(_forward, _backward)


def product_distance(x: Array, codebooks: Array, allowed: Array) -> Array:
    """Sum of |x - its centroids|^2, whose gradient pulls rows and centroids together; the choice has none."""
    return jnp.sum((x - product_values(product_codes(x, codebooks, allowed), codebooks)) ** 2)


def product_bits(groups: Sequence[int], centroids: Sequence[int], subspaces: int, width: int) -> int:
    """Bits of a table of `groups` rows with so many `centroids` each, and its shared codebooks in float32.

    Codes of 2^b centroids take b bits. 10 % of 10,000 rows with 256 centroids, the rest with 64, 16 subspaces of 4:

    >>> product_bits((1000, 9000), (256, 64), subspaces=16, width=64) / (10000 * 64 * 32)
    0.074...
    """
    codes = sum(rows * subspaces * math.ceil(math.log2(k)) for rows, k in zip(groups, centroids, strict=True))
    return codes + max(centroids) * width * 32


@functools.partial(jax.jit, static_argnames=("subspaces", "centroids", "iterations"))
def product_quantize(
    table: Array, allowed: Array, key: Array, *, subspaces: int, centroids: int, iterations: int = 25
) -> ProductCodes:
    """Codebooks fitted to a trained table: Lloyd's iterations in every subspace, from random rows.

    table   : [rows, width] float32.
    allowed : [rows] int32, 1..centroids: how many of the centroids each row may use, the first ones.

    The sum of squares never rises: each row takes the nearest centroid it may use, each centroid moves to the mean of
    its rows. A centroid without rows stays. The paper learns table and codebooks together: `product_lookup`.

    Raises:
        ValueError: a width that subspaces do not divide, or fewer rows than centroids.
    """
    rows, width = table.shape
    if width % subspaces or rows < centroids:
        raise ValueError(
            f"product_quantize: {subspaces} subspaces of {width} columns and {centroids} centroids for {rows} rows; "
            "give a divisor, and at most as many centroids as rows"
        )
    parts = table.reshape(rows, subspaces, width // subspaces)
    begin = jnp.swapaxes(parts[jax.random.permutation(key, rows)[:centroids]], 0, 1)

    def iteration(_: Array, books: Array) -> Array:
        codes = product_codes(table, books, allowed)
        mine = jax.nn.one_hot(codes, centroids, dtype=jnp.float32)
        count = jnp.sum(mine, axis=0)[..., None]
        sums = jnp.einsum("rsk,rsp->skp", mine, parts, precision="highest")
        return jnp.where(count > 0, sums / jnp.maximum(count, 1), books)

    books = lax.fori_loop(0, iterations, iteration, begin)
    return ProductCodes(product_codes(table, books, allowed), books)
