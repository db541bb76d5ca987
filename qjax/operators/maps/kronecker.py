"""Kronecker(factors): a matrix that is a Kronecker product, applied factor by factor."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from qjax.nodes import node
from qjax.operators.operator import Map, batched, wide


@node
@dataclass(frozen=True, eq=False)
class Kronecker(Map):
    """x @ (F_1 kron F_2 kron ...), F_i [batch..., n_i, n_i] (FlatQuant P1 x P2); K * sum(n_i) a token.

    `orthogonal` states that every factor is, so that the inverse is the transpose; otherwise factors are inverted.
    `drawn` states that a key draws them again, so that they count no bits.
    """

    factors: tuple[jax.Array, ...]
    orthogonal: bool = field(default=False, metadata={"static": True})
    drawn: bool = field(default=False, metadata={"static": True})

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.factors[0].shape[:-2]

    def apply(self, x: jax.Array) -> jax.Array:
        return batched(kronecker_product, self.factors[0].ndim - 2)(x, self.factors)

    def transpose(self) -> Kronecker:
        return replace(self, factors=tuple(jnp.swapaxes(f, -1, -2) for f in self.factors))

    def inverse(self) -> Kronecker:
        if self.orthogonal:
            return self.transpose()
        return replace(self, factors=tuple(jnp.linalg.inv(f) for f in self.factors))

    def bits(self) -> float:
        return 0.0 if self.drawn else Map.bits(self)


def kronecker_product(x: jax.Array, factors: Sequence[jax.Array | np.ndarray]) -> jax.Array:
    """The product x [..., K] @ (F_1 kron F_2 kron ...), in blocks where the sizes divide K; sums in float32."""
    sizes = [f.shape[0] for f in factors]
    if x.shape[-1] % math.prod(sizes):
        raise ValueError(f"a Kronecker product of sizes {sizes} does not divide {x.shape[-1]} features")
    width = wide(x.dtype)
    y = x.astype(width).reshape(*x.shape[:-1], -1, *sizes)
    for factor in factors:  # contracting the first size appends it last: after all of them the order is restored
        axis = y.ndim - len(sizes)
        y = lax.dot_general(y, jnp.asarray(factor).astype(width), (((axis,), (0,)), ((), ())), precision="highest")
    return y.reshape(x.shape).astype(x.dtype)
