"""Columns(ops, order): input channels permuted and cut, each part through its own operator."""

from __future__ import annotations

import functools
import itertools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qjax import dispatch
from qjax.nodes import node
from qjax.operators import epilogues, rows  # rows, the module: Columns and Rows transpose into each other
from qjax.operators.maps.permute import Permute
from qjax.operators.operator import Operator, wide
from qjax.operators.post import Post


@node
@dataclass(frozen=True, eq=False)
class Columns(Operator):
    """y = sum over parts of op_i(x[..., order][part i]): mixed precision over input channels (LLM.int8, Atom, QUIK).

    ops[i] is [batch..., K_i, N]; the sizes K_i are the cut. `order` [batch..., K] int32 lists the input channels in the
    order of the parts; None keeps them as they are.
    """

    ops: tuple[Any, ...]
    order: jax.Array | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Input channels of each part."""
        return tuple(op.shape[-2] for op in self.ops)

    @property
    def shape(self) -> tuple[int, ...]:
        return (*self.ops[0].shape[:-2], sum(self.sizes), self.ops[0].shape[-1])

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.ops[0].dtype)

    def matmul(self, x: jax.Array, *, dtype: Any = None, implementation: str | None = None) -> jax.Array:
        parts = self.parts(x)
        if epilogues.chosen(self, math.prod(x.shape[:-1]), implementation, x.dtype):
            return epilogues.matmul(self.ops, parts, dtype)
        width = wide(x.dtype)
        terms = [
            dispatch.matmul(part, op, dtype=width, implementation=implementation)
            for part, op in zip(parts, self.ops, strict=True)
        ]
        return functools.reduce(jnp.add, terms).astype(x.dtype if dtype is None else dtype)

    def parts(self, x: jax.Array) -> list[jax.Array]:
        """The input channels [batch..., tokens..., K_i] of each part."""
        x = x if self.order is None else Permute(self.order).apply(x)
        return jnp.split(x, list(itertools.accumulate(self.sizes))[:-1], axis=-1)

    def affine(self) -> tuple[jax.Array, jax.Array | None]:
        parts = [dispatch.affine(op) for op in self.ops]
        W = jnp.concatenate([w.astype(self.dtype) for w, _ in parts], axis=-2)
        if self.order is not None:
            W = jnp.swapaxes(Permute(self.order).transpose().apply(jnp.swapaxes(W, -1, -2)), -1, -2)
        biases = [b.astype(self.dtype) for _, b in parts if b is not None]
        return W, functools.reduce(jnp.add, biases) if biases else None

    def rows(self, ids: jax.Array) -> jax.Array:
        taken = jnp.concatenate([dispatch.rows(op, ids).astype(self.dtype) for op in self.ops], axis=-1)
        return taken if self.order is None else Permute(self.order).transpose().apply(taken)

    def transpose(self) -> Any:
        stacked = rows.Rows(tuple(dispatch.transpose(op) for op in self.ops))
        if self.order is None:
            return stacked
        return Post(stacked, Permute(self.order).transpose())

    def outputs(self, start: Any, size: int) -> Columns | None:
        ops = tuple(dispatch.outputs(op, start, size) for op in self.ops)
        return None if any(op is None for op in ops) else Columns(ops, self.order)
