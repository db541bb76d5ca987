"""Scaled(op, a, b): a matrix whose every entry has a factor of its own, the factors of low rank."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qjax import dispatch
from qjax.nodes import node
from qjax.operators.operator import Operator, compose, product, wide


@node
@dataclass(frozen=True, eq=False)
class Scaled(Operator):
    """W = op * (a @ b), entry by entry, with op [batch..., K, N], a [batch..., K, r], b [batch..., r, N].

    Signs times magnitudes of low rank (BitStack; with r = 1 OneBit's two vectors of scales). Computed by filling the
    matrix in; with r = 1 by scaling inputs and outputs instead.

    >>> Scaled(jnp.array([[1.0, -1.0]]), jnp.array([[2.0]]), jnp.array([[3.0, 4.0]])).affine()[0].tolist()
    [[6.0, -8.0]]
    """

    op: Any
    a: jax.Array
    b: jax.Array

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.op.shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.op.dtype)

    def matmul(self, x: jax.Array, *, dtype: Any = None, implementation: str | None = None) -> jax.Array:
        if self.a.shape[-1] > 1 or self.a.ndim > 2:
            return product(x, self.matrix(), dtype)
        shape, width = (1,) * (x.ndim - 1), wide(x.dtype)
        scaled = x.astype(width) * self.a.astype(width).reshape(*shape, -1)
        y = dispatch.matmul(scaled, self.op, implementation=implementation)
        return (y * self.b.astype(width).reshape(*shape, -1)).astype(x.dtype if dtype is None else dtype)

    def affine(self) -> tuple[jax.Array, jax.Array | None]:
        return (dispatch.dense(self.op).astype(jnp.float32) * _magnitude(self.a, self.b)).astype(self.dtype), None

    def rows(self, ids: jax.Array) -> jax.Array:
        taken = jnp.take(jnp.swapaxes(self.b, -1, -2), ids.reshape(-1), axis=-2)
        scale = _magnitude(taken, jnp.swapaxes(self.a, -1, -2))
        scale = scale.reshape(*scale.shape[:-2], *ids.shape, scale.shape[-1])
        return (dispatch.rows(self.op, ids).astype(jnp.float32) * scale).astype(self.dtype)

    def transpose(self) -> Scaled:
        return Scaled(dispatch.transpose(self.op), jnp.swapaxes(self.b, -1, -2), jnp.swapaxes(self.a, -1, -2))

    def outputs(self, start: Any, size: int) -> Scaled | None:
        op = dispatch.outputs(self.op, start, size)
        return None if op is None else Scaled(op, self.a, jax.lax.dynamic_slice_in_dim(self.b, start, size, axis=-1))


def _magnitude(a: jax.Array, b: jax.Array) -> jax.Array:
    return compose(a.astype(jnp.float32), b.astype(jnp.float32))
