"""Rounding to the nearest value: ties to even, the default everywhere (catalogue D1), or ties away from zero."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
from jax import Array

from qjax.nodes import node
from qjax.rounding.values import Values


@node
@dataclass(frozen=True)
class Nearest:
    """Calls the element's own encoding."""

    def __call__(self, element: Values, x: Array, table: Array | None) -> Array:
        return element.encode(x, table)


@node
@dataclass(frozen=True)
class HalfAway:
    """Nearest, a tie to the neighbour of larger magnitude: C's `round`, IEEE 754 roundTiesToAway, ggml's Q8_0.

    >>> from qjax.formats import Int
    >>> half_away(Int(4), jnp.array([-2.5, 2.5, 0.4]), None).tolist()
    [-3, 3, 0]
    """

    def __call__(self, element: Values, x: Array, table: Array | None) -> Array:
        low, high = element.neighbours(x, table)
        # Twice x against low + high in exact arithmetic: the sum and what rounding it lost.
        total = low + high
        part = total - low
        lost = (low - (total - part)) + (high - part)
        twice = x + x
        above = (twice > total) | ((twice == total) & (lost < 0))
        tie = (twice == total) & (lost == 0)
        up = above | (tie & (high > -low))
        return element.encode(jnp.where(jnp.isnan(x), x, jnp.where(up, high, low)), table)


nearest = Nearest()
half_away = HalfAway()
