"""Descent among orthogonal matrices: Cayley SGD as an optax optimizer (catalogue H3).

Li, Fuxin and Todorovic, "Efficient Riemannian optimization on the Stiefel manifold via the Cayley transform", 2020
(arXiv:2002.01113), algorithm 1 without momentum, as SpinQuant (Liu et al. 2024, arXiv:2405.16406) uses it. For X with
gradient G, X W with the skew-symmetric W = (XᵀG - GᵀX)/2 is the gradient along the manifold, and the step solves
Y = X - a/2 (X + Y) W, the Cayley transform, by a few fixed-point iterations; a is the rate, at most 1/|W|_1, so that
they converge.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax


class Taken(NamedTuple):
    """Steps taken, int32."""

    steps: jax.Array


def cayley_sgd(rate: float | optax.Schedule, iterations: int = 5) -> optax.GradientTransformation:
    """Cayley SGD for pytrees of orthogonal matrices [..., n, n], each on its own.

    The fixed point is met only nearly, and the drift off the manifold would add up: one step of Newton's iteration for
    the polar factor follows each update (the authors' code orthogonalizes by QR in one step of a hundred). `update`
    needs the parameters.
    """

    def init(params: Any) -> Taken:
        del params
        return Taken(jnp.zeros((), jnp.int32))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        if params is None:
            raise ValueError("cayley_sgd: update(updates, state, params) needs the parameters")
        step = jnp.asarray(rate(state.steps) if callable(rate) else rate, jnp.float32)
        moved = jax.tree.map(lambda x, g: _moved(x, g, step, iterations) - x, params, updates)
        return moved, Taken(state.steps + 1)

    return optax.GradientTransformation(init, update)


def _moved(x: jax.Array, gradient: jax.Array, rate: jax.Array, iterations: int) -> jax.Array:
    """The orthogonal matrices [..., n, n] after a step."""
    half = 0.5 * _product(_t(x), gradient)
    w = half - _t(half)
    size = jnp.max(jnp.sum(jnp.abs(w), axis=-2), axis=-1)[..., None, None]
    a = jnp.minimum(rate, 1.0 / (size + jnp.float32(1e-8)))
    y = x - a * gradient
    for _ in range(iterations):
        y = x - 0.5 * a * _product(x + y, w)
    return 1.5 * y - 0.5 * _product(y, _product(_t(y), y))


def _t(x: jax.Array) -> jax.Array:
    return jnp.swapaxes(x, -1, -2)


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.matmul(a, b, precision="highest")
