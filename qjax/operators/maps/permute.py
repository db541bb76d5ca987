"""Permute(order): channels in another order."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from qjax.nodes import node
from qjax.operators.operator import Map, batched


@node
@dataclass(frozen=True, eq=False)
class Permute(Map):
    """x[..., order], order [batch..., K] a permutation (activation order, channel grouping)."""

    order: jax.Array

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.order.shape[:-1]

    def apply(self, x: jax.Array) -> jax.Array:
        return batched(lambda x, order: jnp.take(x, order, axis=-1), self.order.ndim - 1)(x, self.order)

    def transpose(self) -> Permute:
        return self.inverse()

    def inverse(self) -> Permute:
        return Permute(jnp.argsort(self.order, axis=-1).astype(self.order.dtype))
