"""PACT: a rectifier with a learned clip, quantized (catalogue B9; Choi et al. 2018, arXiv:1805.06085)."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
from jax import Array


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def pact(x: Array, alpha: Array, bits: int) -> Array:
    """clip(x, 0, alpha) on 2^bits even levels from 0 to alpha (eq. 1 and 2), with the published gradients (eq. 3).

    x     : float32, any shape.
    alpha : float32, positive; a scalar, or as many axes as `x`, each of its size or 1.

    The gradient in alpha is 1 where x >= alpha, else 0, summed over what shares it; in x it is 1 on [0, alpha), else 0.
    The paper adds an L2 penalty on alpha to the loss.

    >>> jax.grad(lambda a: pact(jnp.array([-1.0, 2.0, 7.0, 9.0]), a, 2).sum())(jnp.float32(6.0))
    Array(2., dtype=float32)
    """
    if not 1 <= bits <= 16:
        raise ValueError(f"pact: bits must be 1..16, got {bits}")
    step = alpha / jnp.float32(2**bits - 1)
    return jnp.round(jnp.clip(x, 0, alpha) / step) * step


def _forward(x: Array, alpha: Array, bits: int) -> tuple[Array, tuple[Array, Array]]:
    return pact(x, alpha, bits), (x, alpha)


def _backward(bits: int, kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, alpha = kept
    zero = jnp.zeros_like(g)
    to_alpha = jnp.where(x >= alpha, g, zero)
    if alpha.ndim == 0:
        to_alpha = jnp.sum(to_alpha)
    else:
        axes = tuple(a for a, n in enumerate(alpha.shape) if n != x.shape[a])
        to_alpha = jnp.sum(to_alpha, axis=axes, keepdims=True)
    return jnp.where((x >= 0) & (x < alpha), g, zero), to_alpha


pact.defvjp(_forward, _backward)
