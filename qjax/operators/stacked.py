"""Stacked(ops): a stacked leaf whose layers differ in kind."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from qjax import dispatch
from qjax.nodes import node
from qjax.operators.operator import Operator


@node
@dataclass(frozen=True, eq=False)
class Stacked(Operator):
    """[L, batch..., K, N] from L operators [batch..., K, N] of unlike structure: int4 in some layers, int8 in others.

    Layers of equal structure are better stacked by `tree.map(jnp.stack)`. `index` takes a Python int here: a traced one
    cannot choose between structures (TypeError), so a scan over these layers is unrolled.
    """

    ops: tuple[Any, ...]
    uniform: ClassVar[bool] = False

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self.ops), *self.ops[0].shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.ops[0].dtype)

    def matmul(self, x: jax.Array, *, dtype: Any = None, implementation: str | None = None) -> jax.Array:
        parts = [dispatch.matmul(x[i], op, dtype=dtype, implementation=implementation) for i, op in enumerate(self.ops)]
        return jnp.stack(parts)

    def affine(self) -> tuple[jax.Array, jax.Array | None]:
        parts = [dispatch.affine(op) for op in self.ops]
        W = jnp.stack([w.astype(self.dtype) for w, _ in parts])
        if all(b is None for _, b in parts):
            return W, None
        filled = [jnp.zeros((*w.shape[:-2], w.shape[-1]), self.dtype) if b is None else b for w, b in parts]
        return W, jnp.stack([b.astype(self.dtype) for b in filled])

    def rows(self, ids: jax.Array) -> jax.Array:
        return jnp.stack([dispatch.rows(op, ids).astype(self.dtype) for op in self.ops])

    def transpose(self) -> Stacked:
        return Stacked(tuple(dispatch.transpose(op) for op in self.ops))

    def outputs(self, start: Any, size: int) -> Stacked | None:
        ops = tuple(dispatch.outputs(op, start, size) for op in self.ops)
        return None if any(op is None for op in ops) else Stacked(ops)

    def index(self, i: Any) -> Any:
        if not isinstance(i, (int, np.integer)):
            raise TypeError(f"Stacked {self.shape}: its layers differ in structure, so the index must be a Python int")
        return self.ops[i]
