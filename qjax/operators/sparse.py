"""Sparse(values, ins, outs; size): a matrix given by its nonzero entries."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qjax.nodes import node
from qjax.operators.operator import Operator, batched, product, wide


@node
@dataclass(frozen=True, eq=False)
class Sparse(Operator):
    """W[ins[j], outs[j]] += values[j]: outliers kept apart (SpQR, SqueezeLLM). Arrays are [batch..., nonzeros].

    Indices may be of any unsigned type wide enough; they are counted as stored. `size` is (K, N). Few tokens gather
    what meets the entries; where that would be more numbers than the matrix has, it is filled in and multiplied.
    """

    values: jax.Array
    ins: jax.Array
    outs: jax.Array
    size: tuple[int, int] = field(metadata={"static": True})

    @classmethod
    def largest(cls, w: jax.Array, count: int) -> Sparse:
        """The `count` entries of w [K, N] of largest magnitude, with the narrowest indices."""
        _, flat = jax.lax.top_k(jnp.abs(w).reshape(-1), count)
        K, N = w.shape
        return cls(
            jnp.take(w.reshape(-1), flat), (flat // N).astype(narrowest(K)), (flat % N).astype(narrowest(N)), (K, N)
        )

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.values.shape[:-1], *self.size)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.values.dtype)

    def matmul(self, x: jax.Array, *, dtype: Any = None, implementation: str | None = None) -> jax.Array:
        width, tokens = wide(x.dtype), math.prod(x.shape[self.values.ndim - 1 : -1])
        if tokens * self.values.shape[-1] > math.prod(self.size):
            same = x if x.dtype == self.dtype else x.astype(wide(x.dtype, self.dtype))
            return product(same, self.affine()[0], x.dtype if dtype is None else dtype)

        def scatter(x: jax.Array, values: jax.Array, ins: jax.Array, outs: jax.Array) -> jax.Array:
            terms = x[..., ins].astype(width) * jnp.broadcast_to(values.astype(width), (*x.shape[:-1], values.size))
            return jnp.zeros((*x.shape[:-1], self.size[1]), width).at[..., outs].add(terms)

        y = batched(scatter, self.values.ndim - 1)(x, self.values, *self._indices())
        return y.astype(x.dtype if dtype is None else dtype)

    def affine(self) -> tuple[jax.Array, jax.Array | None]:
        def fill(values: jax.Array, ins: jax.Array, outs: jax.Array) -> jax.Array:
            return jnp.zeros(self.size, values.dtype).at[ins, outs].add(values)

        return batched(fill, self.values.ndim - 1)(self.values, *self._indices()), None

    def transpose(self) -> Sparse:
        return Sparse(self.values, self.outs, self.ins, (self.size[1], self.size[0]))

    def _indices(self) -> tuple[jax.Array, jax.Array]:
        return self.ins.astype(jnp.int32), self.outs.astype(jnp.int32)


def narrowest(length: int) -> Any:
    """The narrowest unsigned type that indexes `length` entries."""
    return jnp.uint8 if length <= 2**8 else jnp.uint16 if length <= 2**16 else jnp.uint32
