"""HeadOrder(order): the channels of every head in an order of its own."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from qjax.nodes import node
from qjax.operators.operator import Map


@node
@dataclass(frozen=True, eq=False)
class HeadOrder(Map):
    """x [..., heads, dim] with the channels of each head in an order of its own, int32 [heads, dim].

    >>> HeadOrder(jnp.array([[1, 0], [0, 1]])).apply(jnp.array([[3, 4], [5, 6]])).tolist()
    [[4, 3], [5, 6]]
    """

    order: jax.Array

    def apply(self, x: jax.Array) -> jax.Array:
        return jnp.take_along_axis(x, jnp.broadcast_to(self.order, x.shape), axis=-1)
