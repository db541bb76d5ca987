"""Reassemble(taken, given): channels merged into groups, and every group shared out between copies."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from qjax.nodes import node
from qjax.operators.operator import Map, batched, wide


@node
@dataclass(frozen=True, eq=False)
class Reassemble(Map):
    """Output j is the mean of the channels of its group divided by the number of the group's outputs.

    `taken` [batch..., K] and `given` [batch..., K'] hold the group of each input and of each output, any ints in [0,
    max(K, K')), counted as stored. A group of one input and T outputs is an outlier channel as T copies of x/T, one of
    m inputs and one output are m similar channels as their mean (channel disassembly and assembly, QLLM,
    arXiv:2310.08041; catalogue G12). Inputs of a group without outputs are lost, outputs of one without inputs are 0.
    The transpose is a reassembly too.

    >>> Reassemble(jnp.array([0, 1, 1, 2]), jnp.array([0, 0, 1, 2])).apply(jnp.array([[8.0, 1.0, 3.0, 5.0]]))
    Array([[4., 4., 2., 5.]], dtype=float32)
    """

    taken: jax.Array
    given: jax.Array

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.taken.shape[:-1]

    def apply(self, x: jax.Array) -> jax.Array:
        groups = max(self.taken.shape[-1], self.given.shape[-1])

        def each(x: jax.Array, taken: jax.Array, given: jax.Array) -> jax.Array:
            taken, given = taken.astype(jnp.int32), given.astype(jnp.int32)
            total = jnp.zeros((*x.shape[:-1], groups), wide(x.dtype)).at[..., taken].add(x.astype(wide(x.dtype)))
            shares = jnp.bincount(taken, length=groups) * jnp.bincount(given, length=groups)
            y = total / jnp.maximum(shares, 1).astype(total.dtype).reshape(*(1,) * (x.ndim - 1), groups)
            return jnp.take(y, given, axis=-1).astype(x.dtype)

        return batched(each, self.taken.ndim - 1)(x, self.taken, self.given)

    def transpose(self) -> Reassemble:
        return Reassemble(self.given, self.taken)

    def features(self, outputs: int) -> int:
        return self.taken.shape[-1]

    def results(self, inputs: int) -> int:
        return self.given.shape[-1]
