"""N2UQ: even levels behind learned, uneven thresholds (catalogue B14; Liu et al., CVPR 2022, arXiv:2111.14826)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

EPSILON = 1e-3
"""The least width of an interval, as in the authors' code."""


@jax.custom_vjp
def n2uq(x: Array, start: Array, widths: Array, step: Array) -> Array:
    """step * (how many thresholds lie below x), with the generalized straight-through gradients of the paper.

    x      : float32, any shape.
    start  : float32 scalar; widths: float32 [n], the intervals between the points of transition, from `start` up.
    step   : float32 scalar, the distance of the n + 1 output levels 0, step, ..., n*step.

    Threshold i is the middle of interval i. Backwards the staircase counts as the piecewise linear function through the
    ends of the intervals, the expectation of rounding x at random between their levels: in interval i (its right end
    included) the slope is step/width_i, and start and the widths up to i have the gradients of that line; outside
    all intervals there is none. `step` has the gradient of a factor.

    >>> widths = jnp.array([1.0, 1.0, 2.0])
    >>> n2uq(jnp.array([0.4, 0.6, 3.1]), jnp.float32(0.0), widths, jnp.float32(1.0)).tolist()
    [0.0, 1.0, 3.0]
    """
    return step * _count(x, start, widths)


def _count(x: Array, start: Array, widths: Array) -> Array:
    widths = jnp.maximum(widths, jnp.float32(EPSILON))
    return jnp.sum(x[..., None] > _along(start + jnp.cumsum(widths) - widths / 2, x), axis=-1, dtype=jnp.float32)


def _along(v: Array, x: Array) -> Array:
    """[n] on an axis behind those of x."""
    return v.reshape((1,) * x.ndim + v.shape)


def _forward(x: Array, start: Array, widths: Array, step: Array) -> tuple[Array, tuple[Array, ...]]:
    return n2uq(x, start, widths, step), (x, start, widths, step)


def _backward(kept: tuple[Array, ...], g: Array) -> tuple[Array, ...]:
    x, start, widths, step = kept
    width = jnp.maximum(widths, jnp.float32(EPSILON))
    ends = start + jnp.cumsum(width)
    into = x[..., None] - _along(ends - width, x)
    inside = (into > 0) & (x[..., None] <= _along(ends, x))
    slope = jnp.where(inside, step / _along(width, x), jnp.float32(0))
    flow = g[..., None] * slope
    over = tuple(range(x.ndim))
    own = jnp.sum(flow * into, axis=over) / width
    # A width moves the lines of all intervals behind its own, as start does.
    each = jnp.sum(flow, axis=over)
    behind = jnp.sum(each) - jnp.cumsum(each)
    to_widths = jnp.where(widths > EPSILON, -own - behind, jnp.float32(0))
    return jnp.sum(flow, axis=-1), -jnp.sum(each), to_widths, jnp.sum(g * _count(x, start, widths))


n2uq.defvjp(_forward, _backward)
