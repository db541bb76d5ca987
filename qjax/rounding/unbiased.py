"""Stochastic rounding: up or down with probabilities that make the expectation exact (catalogue D2)."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jax import Array

from qjax.nodes import node
from qjax.rounding.values import Values


@node
@dataclass(frozen=True)
class Stochastic:
    """See `stochastic`."""

    key: Array

    def __call__(self, element: Values, x: Array, table: Array | None) -> Array:
        low, high = element.neighbours(x, table)
        gap = high - low
        up = (jnp.clip(x, low, high) - low) / jnp.where(gap > 0, gap, jnp.float32(1))
        draw = jax.random.uniform(self.key, x.shape, jnp.float32)
        return element.encode(jnp.where(jnp.isnan(x), x, jnp.where(draw < up, high, low)), table)


def stochastic(key: Array) -> Stochastic:
    """Rounds to one of the two neighbouring values with expectation `x`; values beyond the range saturate.

    `key` is a `jax.random.key`; fold the site or step into it yourself. Works for every element, tables included.

    >>> import qjax.formats
    >>> codes = stochastic(jax.random.key(0))(qjax.formats.Int(4), jnp.full(1000, 2.25), None)
    >>> sorted(set(codes.tolist())), bool(abs(codes.mean() - 2.25) < 0.05)
    ([2, 3], True)
    """
    return Stochastic(key)
