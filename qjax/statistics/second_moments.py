"""Second moments: the Gram matrix X^T X of a layer's inputs (half of GPTQ's Hessian), and the cross-Gram of two."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import lax

from qjax.statistics.statistic import row_weights, rows


def _dot(x: jax.Array, y: jax.Array) -> jax.Array:
    """x^T y over tokens, batch axes leading; true float32 products on every platform."""
    batch = tuple(range(x.ndim - 2))
    return lax.dot_general(
        x,
        y,
        (((x.ndim - 2,), (y.ndim - 2,)), (batch, batch)),
        precision=lax.Precision.HIGHEST,
        preferred_element_type=jnp.float32,
    )


def halvings(features: int) -> int:
    """How often the triangle is halved into a square and two triangles on CPU; (1 + 2^-halvings) / 2 is computed.

    Measured on 2 cores against one GEMM of 1024 tokens (`experiments.benchmarks.gram`): more halvings gain nothing.
    """
    return 3 if features >= 1024 else 2 if features >= 512 else 0


def _triangle(x: jax.Array, weighted: jax.Array, halvings: int) -> jax.Array:
    if halvings == 0:
        return _dot(weighted, x)
    # A cut at a multiple of 32 keeps every piece aligned; it need not halve the axis.
    middle = round(x.shape[-1] / 64) * 32
    upper, lower = slice(None, middle), slice(middle, None)
    beside = _dot(weighted[..., upper], x[..., lower])
    above = jnp.concatenate([_triangle(x[..., upper], weighted[..., upper], halvings - 1), beside], axis=-1)
    below = [beside.swapaxes(-1, -2), _triangle(x[..., lower], weighted[..., lower], halvings - 1)]
    return jnp.concatenate([above, jnp.concatenate(below, axis=-1)], axis=-2)


def gram(x: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """sum_t w_t x_t x_t^T of x [*batch, tokens, K] -> float32 [*batch, K, K].

    On CPU only the upper triangle of a wide x, in squares, is multiplied and mirrored; elsewhere one GEMM is faster.
    """
    plain = rows(x, weights)
    weighted = plain if weights is None else plain * row_weights(x, weights)[..., None]
    if not (times := halvings(x.shape[-1])):
        return _dot(weighted, plain)
    cpu = functools.partial(_triangle, halvings=times)
    return lax.platform_dependent(plain, weighted, cpu=cpu, default=lambda x, w: _dot(w, x))


@dataclass(frozen=True)
class Gram:
    """sum of w x x^T over tokens, float32 [*batch, K, K]: one GEMM an update, not divided by the number of tokens."""

    name: str = "gram"

    def init(self, features: int, batch: tuple[int, ...] = ()) -> jax.Array:
        return jnp.zeros((*batch, features, features), jnp.float32)

    def update(self, value: jax.Array, x: jax.Array, weights: jax.Array | None = None) -> jax.Array:
        return value + gram(x, weights)

    def merge(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return a + b

    def result(self, value: jax.Array) -> jax.Array:
        return value


@dataclass(frozen=True)
class CrossGram:
    """sum of w x y^T over paired tokens, float32 [*batch, K, K]; `update` takes the pair (x, y).

    x is the stream a layer will see (quantized prefix), y the same tokens in the float model: GPTAQ's asymmetric term.
    """

    name: str = "cross_gram"

    def init(self, features: int, batch: tuple[int, ...] = ()) -> jax.Array:
        return jnp.zeros((*batch, features, features), jnp.float32)

    def update(self, value: jax.Array, x: tuple[jax.Array, jax.Array], weights: jax.Array | None = None) -> jax.Array:
        if not isinstance(x, tuple) or len(x) != 2 or x[0].shape != x[1].shape:
            raise ValueError("cross_gram pairs two streams of the same tokens: update(value, (x, reference_x))")
        left, right = rows(x[0], weights), rows(x[1], weights)
        if weights is not None:
            left = left * row_weights(left, weights)[..., None]
        return value + _dot(left, right)

    def merge(self, a: jax.Array, b: jax.Array) -> jax.Array:
        return a + b

    def result(self, value: jax.Array) -> jax.Array:
        return value
