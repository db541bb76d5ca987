"""Shift(offset): a constant added to every token."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from qjax.nodes import node
from qjax.operators.operator import Map, batched


@node
@dataclass(frozen=True, eq=False)
class Shift(Map):
    """x + offset, offset [batch..., K]: behind an operator a bias, before it a channel shift (Outlier Suppression+)."""

    offset: jax.Array

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.offset.shape[:-1]

    def apply(self, x: jax.Array) -> jax.Array:
        def moved(x: jax.Array, offset: jax.Array) -> jax.Array:
            return x + jnp.broadcast_to(offset.astype(x.dtype), x.shape)

        return batched(moved, self.offset.ndim - 1)(x, self.offset)

    def transpose(self) -> Identity:
        return Identity()

    def linear(self) -> None:
        return None

    def shift(self) -> jax.Array:
        return self.offset

    def inverse(self) -> Shift:
        return Shift(-self.offset)


@node
@dataclass(frozen=True, eq=False)
class Identity(Map):
    """x: the linear part of a shift."""

    def apply(self, x: jax.Array) -> jax.Array:
        return x

    def transpose(self) -> Identity:
        return self

    def inverse(self) -> Identity:
        return self
