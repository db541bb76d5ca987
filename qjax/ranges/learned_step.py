"""LSQ: the step size learned by its own gradient (catalogue B10; Esser et al., ICLR 2020, arXiv:1902.08153)."""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
from jax import Array

from qjax.formats.elements import Element


def lsq(x: Array, scale: Array, element: Element, count: int | None = None) -> Array:
    """scale * element.round(x / scale), float32, with the published gradients in `x` and in `scale` (eq. 3 and 5).

    x     : float32, any shape.
    scale : float32, positive; as many axes as `x`, each of its size or 1.
    count : N of the gradient's scale 1/sqrt(N Q_P): values that share a step, those of `x` if None. For activations the
            paper takes the features of one example, not the batch.

    With y = x/scale the gradient in x is 1 where element.min < y < element.max, else 0. That in the scale is
    round(y) - y there, element.min or element.max outside, summed over what shares it and times 1/sqrt(N Q_P), Q_P
    being element.max. It holds for any element; the paper's are integers.

    >>> from qjax.formats import Int
    >>> x, s = jnp.array([0.6, -9.0]), jnp.array([1.0])
    >>> jax.grad(lambda s: lsq(x, s, Int(3), count=1).sum())(s) * math.sqrt(3)
    Array([-3.6], dtype=float32)
    """
    if scale.ndim != x.ndim or any(n not in (1, m) for n, m in zip(scale.shape, x.shape, strict=True)):
        raise ValueError(f"lsq: scales of shape {scale.shape} do not fit values of shape {x.shape}")
    shared = x.size // scale.size if count is None else count
    return _lsq(x, scale, element, 1 / math.sqrt(shared * element.max))


def lsq_init(x: Array, element: Element, axes: tuple[int, ...] | None = None) -> Array:
    """The paper's first step, 2 mean|x| / sqrt(Q_P), over `axes` (kept; all of them if None); zeros give 1."""
    scale = 2 * jnp.mean(jnp.abs(x), axis=axes, keepdims=True) / math.sqrt(element.max)
    return jnp.where(scale > 0, scale, jnp.ones_like(scale))


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _lsq(x: Array, scale: Array, element: Element, gain: float) -> Array:
    return jnp.where(jnp.isnan(x), x, scale * element.round(x / scale))  # a NaN is no zero, whatever the element


def _forward(x: Array, scale: Array, element: Element, gain: float) -> tuple[Array, tuple[Array, Array]]:
    return _lsq(x, scale, element, gain), (x, scale)


def _backward(element: Element, gain: float, kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, scale = kept
    y = x / scale
    inside = (y > element.min) & (y < element.max)
    slope = element.round(y) - jnp.where(inside, y, jnp.zeros_like(y))
    axes = tuple(a for a, n in enumerate(scale.shape) if n != x.shape[a])
    return jnp.where(inside, g, jnp.zeros_like(g)), jnp.float32(gain) * jnp.sum(g * slope, axis=axes, keepdims=True)


_lsq.defvjp(_forward, _backward)
