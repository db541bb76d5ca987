"""Rows(ops): output units cut into parts, each with its own operator."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qjax import dispatch
from qjax.nodes import node
from qjax.operators import columns  # the module: Columns and Rows transpose into each other
from qjax.operators.operator import Operator


@node
@dataclass(frozen=True, eq=False)
class Rows(Operator):
    """y = concatenate(op_1(x), op_2(x), ...): output units of mixed precision, or fused projections (q, k, v).

    ops[i] is [batch..., K, N_i]; N = N_1 + N_2 + ...
    """

    ops: tuple[Any, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.ops[0].shape[:-1], sum(op.shape[-1] for op in self.ops))

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.ops[0].dtype)

    def matmul(self, x: jax.Array, *, dtype: Any = None, implementation: str | None = None) -> jax.Array:
        parts = [dispatch.matmul(x, op, dtype=dtype, implementation=implementation) for op in self.ops]
        return jnp.concatenate(parts, axis=-1)

    def affine(self) -> tuple[jax.Array, jax.Array | None]:
        parts = [dispatch.affine(op) for op in self.ops]
        W = jnp.concatenate([w.astype(self.dtype) for w, _ in parts], axis=-1)
        if all(b is None for _, b in parts):
            return W, None
        filled = [jnp.zeros((*w.shape[:-2], w.shape[-1]), self.dtype) if b is None else b for w, b in parts]
        return W, jnp.concatenate([b.astype(self.dtype) for b in filled], axis=-1)

    def transpose(self) -> Any:
        return columns.Columns(tuple(dispatch.transpose(op) for op in self.ops))

    def outputs(self, start: Any, size: int) -> Any:
        offset = 0
        for op in self.ops:  # a cut inside one part is a cut of that part
            if isinstance(start, int) and offset <= start and start + size <= offset + op.shape[-1]:
                return dispatch.outputs(op, start - offset, size)
            offset += op.shape[-1]
        return None
