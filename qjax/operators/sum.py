"""Sum(ops): operators that read the same input and add their outputs."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qjax import dispatch
from qjax.nodes import node
from qjax.operators import epilogues
from qjax.operators.operator import Operator, wide


@node
@dataclass(frozen=True, eq=False)
class Sum(Operator):
    """W = W_1 + W_2 + ...: a quantized weight beside low-rank or sparse corrections (LoRA, LQER A-rows, SpQR).

    Terms are added in float32 at least, in the order given, or all by the kernel of one of them (`epilogues`).

    >>> import jax.numpy as jnp
    >>> from qjax.operators.factored import Factored
    >>> op = Sum((jnp.zeros((6, 4)), Factored(jnp.ones((6, 1)), jnp.ones((1, 4)))))
    >>> float(op.matmul(jnp.ones((1, 6)))[0, 0])
    6.0
    """

    ops: tuple[Any, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return self.ops[0].shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.ops[0].dtype)

    def matmul(self, x: jax.Array, *, dtype: Any = None, implementation: str | None = None) -> jax.Array:
        if epilogues.chosen(self, math.prod(x.shape[:-1]), implementation, x.dtype):
            return epilogues.matmul(self.ops, [x] * len(self.ops), dtype)
        width = wide(x.dtype)
        terms = [dispatch.matmul(x, op, dtype=width, implementation=implementation) for op in self.ops]
        return functools.reduce(jnp.add, terms).astype(x.dtype if dtype is None else dtype)

    def affine(self) -> tuple[jax.Array, jax.Array | None]:
        parts = [dispatch.affine(op) for op in self.ops]
        biases = [b for _, b in parts if b is not None]
        W = functools.reduce(jnp.add, [w.astype(self.dtype) for w, _ in parts])
        return W, functools.reduce(jnp.add, [b.astype(self.dtype) for b in biases]) if biases else None

    def rows(self, ids: jax.Array) -> jax.Array:
        return functools.reduce(jnp.add, [dispatch.rows(op, ids).astype(self.dtype) for op in self.ops])

    def transpose(self) -> Sum:
        return Sum(tuple(dispatch.transpose(op) for op in self.ops))

    def outputs(self, start: Any, size: int) -> Sum | None:
        ops = tuple(dispatch.outputs(op, start, size) for op in self.ops)
        return None if any(op is None for op in ops) else Sum(ops)
