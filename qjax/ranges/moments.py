"""What the estimators by formula share: weighted means, roots, and a clip that falls back to the whole range."""

from __future__ import annotations

from collections.abc import Callable

import jax.numpy as jnp
from jax import Array

from qjax.formats.format import Format
from qjax.formats.integer import Int
from qjax.formats.rules import quotient


def mean(x: Array, axes: tuple[int, ...], weights: Array | None) -> Array:
    """The weighted mean over `axes` (kept); NaN where nothing weighs."""
    if weights is None:
        return jnp.mean(x, axis=axes, keepdims=True)
    weights = jnp.broadcast_to(weights, x.shape)
    return jnp.sum(x * weights, axis=axes, keepdims=True) / jnp.sum(weights, axis=axes, keepdims=True)


def relative(x: Array, reach: Array) -> Array:
    """`x` in units of its largest magnitude, so that squares neither overflow nor vanish; zeros stay zeros."""
    return quotient(x, jnp.where(reach == 0, jnp.float32(1), reach))


def within(clip: Array, reach: Array) -> Array:
    """`clip` where it is a positive number below `reach`, else `reach`: a constant block, an infinity, no weight."""
    return jnp.where((clip > 0) & (clip < reach), clip, reach)


def root(f: Callable[[float], float], low: float, high: float) -> float:
    """Where `f` changes sign between `low` and `high`, by bisection to the last bit."""
    negative = f(low) < 0
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if (f(middle) < 0) == negative else (low, middle)
    return low


def integer(name: str, fmt: Format) -> Int:
    """The integer element of a format; ValueError for another: its formulas are those of an evenly spaced grid."""
    if not isinstance(fmt.element, Int):
        raise ValueError(
            f"{name} is derived for evenly spaced values, which {fmt.element.name} are not: "
            "ranges.mse searches for any element"
        )
    return fmt.element
