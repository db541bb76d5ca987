"""Diag(scale): channels multiplied one by one."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from qjax.nodes import node
from qjax.operators.operator import Map, batched, wide


@node
@dataclass(frozen=True, eq=False)
class Diag(Map):
    """x * scale, scale [batch..., K]; smoothing (A of SmoothQuant, AWQ), per-channel output scales."""

    scale: jax.Array

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.scale.shape[:-1]

    def apply(self, x: jax.Array) -> jax.Array:
        def scaled(x: jax.Array, scale: jax.Array) -> jax.Array:
            width = wide(x.dtype)
            return (x.astype(width) * jnp.broadcast_to(scale.astype(width), x.shape)).astype(x.dtype)

        return batched(scaled, self.scale.ndim - 1)(x, self.scale)

    def transpose(self) -> Diag:
        return self

    def inverse(self) -> Diag:
        return Diag(1.0 / self.scale)
