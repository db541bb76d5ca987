"""Pre(T, op): a map of the activations in front of an operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qjax import dispatch
from qjax.nodes import node
from qjax.operators import post, rounded_inputs  # post, the module: Pre and Post transpose into each other
from qjax.operators.factored import add_shift
from qjax.operators.operator import Map, NotLinear, Operator


@node
@dataclass(frozen=True, eq=False)
class Pre(Operator):
    """x -> op(T(x)); of nested ones the outermost acts first.

    Rotations, smoothing scales, shifts, activation quantizers.

    >>> import jax.numpy as jnp
    >>> from qjax.operators.maps.diag import Diag
    >>> Pre(Diag(jnp.full(3, 2.0)), jnp.ones((3, 1))).matmul(jnp.ones((1, 3)))
    Array([[6.]], dtype=float32)
    """

    T: Map
    op: Any

    @property
    def shape(self) -> tuple[int, ...]:
        *batch, K, N = self.op.shape
        return (*batch, self.T.features(K), N)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.op.dtype)

    def matmul(self, x: jax.Array, *, dtype: Any = None, implementation: str | None = None) -> jax.Array:
        if isinstance(self.op, Pre):
            T, op, rotation = self.op.T, self.op.op, self.T
        else:
            T, op, rotation = self.T, self.op, None
        joint = rounded_inputs.chosen(T, op, implementation, x.dtype, rotation)
        if joint is not None:
            return rounded_inputs.matmul(joint, x, T, op, dtype, rotation)
        return dispatch.matmul(self.T.apply(x), self.op, dtype=dtype, implementation=implementation)

    def affine(self) -> tuple[jax.Array, jax.Array | None]:
        W, bias = dispatch.affine(self.op)
        turned = jnp.swapaxes(self.T.transpose().apply(jnp.swapaxes(W, -1, -2)), -1, -2)
        shift = self.T.shift()
        if shift is not None:
            shift = jnp.broadcast_to(shift, (*W.shape[:-2], W.shape[-2]))
        return turned, add_shift(shift, W, bias)

    def rows(self, ids: jax.Array) -> jax.Array:
        self._linear()
        return self.T.transpose().apply(dispatch.rows(self.op, ids))

    def transpose(self) -> post.Post:
        self._linear()
        return post.Post(dispatch.transpose(self.op), self.T.transpose())

    def outputs(self, start: Any, size: int) -> Pre | None:
        op = dispatch.outputs(self.op, start, size)
        return None if op is None else Pre(self.T, op)

    def _linear(self) -> None:
        if self.T.shift() is not None:
            raise NotLinear(
                f"Pre({type(self.T).__name__}) {self.shape} shifts its input; its matrix alone would lose that"
            )
