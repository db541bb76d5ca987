"""The least and the largest of many values in one pass over them, with NaN kept."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

RUN = 16
"""Values reduced at a time: XLA cuts longer reductions into windows of 16 and then fuses nothing into them."""


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def largest_magnitude(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """-max|x|, max|x| of float32 `x` over `axes` (kept, size 1); NaN if there is one.

    Compared as bit patterns, in whose order a NaN is the largest magnitude: XLA:CPU's float maximum over an array of a
    few thousand values or more passes over NaN, and over |x| it takes five times as long.
    """
    pattern = lax.bitcast_convert_type(x, jnp.int32) & 0x7FFFFFFF
    runs, axis = _runs(pattern, axes)
    high = lax.bitcast_convert_type(jnp.max(runs, axis), jnp.float32)
    high = jnp.where(_any_nan(high, axes), jnp.float32(jnp.nan), jnp.max(high, axes, keepdims=True))
    return -high, high


@largest_magnitude.defjvp
def _slope_of_magnitude(axes: tuple[int, ...], primals: tuple[Array], tangents: tuple[Array]) -> tuple[Any, Any]:
    def plain(x: Array) -> tuple[Array, Array]:
        high = jnp.max(jnp.abs(x), axes, keepdims=True)
        return -high, high

    return largest_magnitude(*primals, axes), jax.jvp(plain, primals, tangents)[1]


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def ends(x: Array, axes: tuple[int, ...]) -> tuple[Array, Array]:
    """The least and the largest of float32 `x` over `axes` (kept, size 1); NaN if there is one."""
    runs, axis = _runs(_ordered(lax.bitcast_convert_type(x, jnp.int32)), axes)
    low, high = (lax.bitcast_convert_type(_ordered(pick(runs, axis)), jnp.float32) for pick in (jnp.min, jnp.max))
    nan = _any_nan(low, axes) | _any_nan(high, axes)
    low, high = jnp.min(low, axes, keepdims=True), jnp.max(high, axes, keepdims=True)
    return jnp.where(nan, jnp.float32(jnp.nan), low), jnp.where(nan, jnp.float32(jnp.nan), high)


@ends.defjvp
def _slope_of_ends(axes: tuple[int, ...], primals: tuple[Array], tangents: tuple[Array]) -> tuple[Any, Any]:
    def plain(x: Array) -> tuple[Array, Array]:
        return jnp.min(x, axes, keepdims=True), jnp.max(x, axes, keepdims=True)

    return ends(*primals, axes), jax.jvp(plain, primals, tangents)[1]


def _ordered(pattern: Array) -> Array:
    """Float32 bit patterns as integers in the order of the numbers, NaN at either end; its own inverse."""
    return pattern ^ ((pattern >> 31) & 0x7FFFFFFF)


def _runs(x: Array, axes: tuple[int, ...]) -> tuple[Array, int]:
    """`x` with the first of `axes` cut into [runs, values], and the axis of the values.

    The last axis is cut into [values, runs]: a run's values then lie apart, and neighbours in memory are compared with
    neighbours, which vectorizes. An axis that lies on several devices is not cut: their shares need not be whole runs.
    """
    if not axes:  # blocks of one number
        return x[..., None], x.ndim
    axis = min(a % x.ndim for a in axes)
    n = x.shape[axis]
    whole = jax.typeof(x).sharding.spec[axis] is None
    run = max(d for d in range(1, min(n, RUN) + 1) if n % d == 0) if whole else 1
    if axis == x.ndim - 1:
        return x.reshape(*x.shape[:-1], run, n // run), axis
    return x.reshape(*x.shape[:axis], n // run, run, *x.shape[axis + 1 :]), axis + 1


def _any_nan(x: Array, axes: tuple[int, ...]) -> Array:
    return jnp.any(jnp.isnan(x), axes, keepdims=True)
