"""Post(op, T): a map behind an operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qjax import dispatch
from qjax.nodes import node
from qjax.operators import pre  # the module: Pre and Post transpose into each other
from qjax.operators.operator import Map, NotLinear, Operator, wide


@node
@dataclass(frozen=True, eq=False)
class Post(Operator):
    """x -> T(op(x)): output scales, output rotations, biases (`Shift`).

    >>> import jax.numpy as jnp
    >>> from qjax.operators.maps.shift import Shift
    >>> Post(jnp.ones((3, 1)), Shift(jnp.ones(1))).matmul(jnp.ones((1, 3)))
    Array([[4.]], dtype=float32)
    """

    op: Any
    T: Map

    @property
    def shape(self) -> tuple[int, ...]:
        *batch, K, N = self.op.shape
        return (*batch, K, self.T.results(N))

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.op.dtype)

    def matmul(self, x: jax.Array, *, dtype: Any = None, implementation: str | None = None) -> jax.Array:
        width = wide(x.dtype)
        y = self.T.apply(dispatch.matmul(x, self.op, dtype=width, implementation=implementation))
        return y.astype(x.dtype if dtype is None else dtype)

    def affine(self) -> tuple[jax.Array, jax.Array | None]:
        W, bias = dispatch.affine(self.op)
        linear = self.T.linear()
        turned = W if linear is None else linear.apply(W)
        if bias is not None:
            return turned, self.T.apply(jnp.expand_dims(bias, -2))[..., 0, :]
        shift = self.T.shift()
        return turned, None if shift is None else jnp.broadcast_to(shift, (*turned.shape[:-2], turned.shape[-1]))

    def transpose(self) -> Any:
        if self.T.shift() is not None:
            raise NotLinear(
                f"Post({type(self.T).__name__}) {self.shape} shifts its output; its matrix alone would lose that"
            )
        return pre.Pre(self.T.transpose(), dispatch.transpose(self.op))
