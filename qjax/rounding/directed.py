"""Rounding in one direction: down, up or toward zero (catalogue D1)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import jax.numpy as jnp
from jax import Array

from qjax.nodes import node
from qjax.rounding.values import Values


@node
@dataclass(frozen=True)
class Directed:
    """The neighbour of a value that lies in one direction; values beyond the range saturate.

    >>> from qjax.formats import E2M1
    >>> x = jnp.array([-2.9, 2.9])
    >>> [E2M1.decode(mode(E2M1, x, None)).tolist() for mode in (floor, ceil, toward_zero)]
    [[-3.0, 2.0], [-2.0, 3.0], [-2.0, 2.0]]
    """

    toward: Literal["-inf", "+inf", "zero"] = field(metadata={"static": True})

    def __call__(self, element: Values, x: Array, table: Array | None) -> Array:
        low, high = element.neighbours(x, table)
        up = jnp.signbit(x) if self.toward == "zero" else jnp.full(x.shape, self.toward == "+inf")
        return element.encode(jnp.where(jnp.isnan(x), x, jnp.where(up, high, low)), table)


floor = Directed("-inf")
ceil = Directed("+inf")
toward_zero = Directed("zero")
