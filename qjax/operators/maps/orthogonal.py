"""Orthogonal(matrix): a dense rotation, of all channels or of every block of them; Block(matrices): one a block."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from qjax.nodes import node
from qjax.operators.maps.kronecker import kronecker_product
from qjax.operators.operator import Map, batched, wide


@node
@dataclass(frozen=True, eq=False)
class Orthogonal(Map):
    """The map x @ R, R [batch..., n, n] orthogonal; n divides K: the same rotation of every n channels (heads)."""

    R: jax.Array

    @classmethod
    def random(cls, key: jax.Array, size: int) -> Orthogonal:
        """A rotation drawn from the Haar measure."""
        return cls(jax.random.orthogonal(key, size))

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.R.shape[:-2]

    def apply(self, x: jax.Array) -> jax.Array:
        return batched(lambda x, R: kronecker_product(x, [R]), self.R.ndim - 2)(x, self.R)

    def transpose(self) -> Orthogonal:
        return Orthogonal(jnp.swapaxes(self.R, -1, -2))

    def inverse(self) -> Orthogonal:
        return self.transpose()


@node
@dataclass(frozen=True, eq=False)
class Block(Map):
    """Blocks of n consecutive channels, block i by its own matrix M[..., i, :, :]; M [batch..., K / n, n, n]."""

    M: jax.Array

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.M.shape[:-3]

    def apply(self, x: jax.Array) -> jax.Array:
        def each(x: jax.Array, M: jax.Array) -> jax.Array:
            width = wide(x.dtype)
            parts = x.astype(width).reshape(*x.shape[:-1], *M.shape[:2])
            y = jnp.einsum("...bi,bij->...bj", parts, M.astype(width), precision="highest")
            return y.reshape(x.shape).astype(x.dtype)

        return batched(each, self.M.ndim - 3)(x, self.M)

    def transpose(self) -> Block:
        return Block(jnp.swapaxes(self.M, -1, -2))

    def inverse(self) -> Block:
        return Block(jnp.linalg.inv(self.M))
