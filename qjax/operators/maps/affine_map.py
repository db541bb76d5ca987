"""AffineMap(M, c): any matrix and shift."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from qjax.nodes import node
from qjax.operators.maps.shift import Shift
from qjax.operators.operator import Map, product


@node
@dataclass(frozen=True, eq=False)
class AffineMap(Map):
    """The map x @ M + c, M [batch..., K, K'], c [batch..., K'] or None: learned transforms (AffineQuant, FlatQuant)."""

    M: jax.Array
    c: jax.Array | None = None

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.M.shape[:-2]

    def apply(self, x: jax.Array) -> jax.Array:
        y = product(x, self.M)
        return y if self.c is None else Shift(self.c).apply(y)

    def transpose(self) -> AffineMap:
        return AffineMap(jnp.swapaxes(self.M, -1, -2))

    def linear(self) -> AffineMap:
        return AffineMap(self.M)

    def shift(self) -> jax.Array | None:
        return self.c

    def inverse(self) -> AffineMap:
        M = jnp.linalg.inv(self.M)
        return AffineMap(M, None if self.c is None else -product(self.c[..., None, :], M)[..., 0, :])

    def features(self, outputs: int) -> int:
        return self.M.shape[-2]

    def results(self, inputs: int) -> int:
        return self.M.shape[-1]
