"""Factored(a, b): a low-rank matrix a @ b."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qjax import dispatch
from qjax.nodes import node
from qjax.operators.operator import Operator, compose


@node
@dataclass(frozen=True, eq=False)
class Factored(Operator):
    """W = a @ b with a [batch..., K, r], b [batch..., r, N]: LoRA, LQER, SVD branches.

    The factors may be operators themselves.

    >>> import jax.numpy as jnp
    >>> Factored(jnp.ones((6, 2)), jnp.ones((2, 4))).shape
    (6, 4)
    """

    a: Any
    b: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.a.shape[:-1], self.b.shape[-1])

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.a.dtype)

    @property
    def rank(self) -> int:
        return self.a.shape[-1]

    def matmul(self, x: jax.Array, *, dtype: Any = None, implementation: str | None = None) -> jax.Array:
        inner = dispatch.matmul(x, self.a, implementation=implementation)
        return dispatch.matmul(inner, self.b, dtype=dtype, implementation=implementation)

    def affine(self) -> tuple[jax.Array, jax.Array | None]:
        (a, shift), (b, bias) = dispatch.affine(self.a), dispatch.affine(self.b)
        return compose(a, b), add_shift(shift, b, bias)

    def rows(self, ids: jax.Array) -> jax.Array:
        return dispatch.matmul(dispatch.rows(self.b, ids), dispatch.transpose(self.a))

    def transpose(self) -> Factored:
        return Factored(dispatch.transpose(self.b), dispatch.transpose(self.a))

    def outputs(self, start: Any, size: int) -> Factored | None:
        b = dispatch.outputs(self.b, start, size)
        return None if b is None else Factored(self.a, b)


def add_shift(shift: jax.Array | None, W: jax.Array, bias: jax.Array | None) -> jax.Array | None:
    """Shift [batch..., K] @ W [batch..., K, N] + bias [batch..., N], any of the two vectors missing."""
    if shift is None:
        return bias
    moved = compose(jnp.expand_dims(shift, -2), W)[..., 0, :]
    return moved if bias is None else moved + bias.astype(moved.dtype)
