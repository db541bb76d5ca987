"""BlockKronecker(shared, own): every block of channels by a Kronecker product whose first factor all blocks share."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from qjax.nodes import node
from qjax.operators.operator import Map, batched, wide


@node
@dataclass(frozen=True, eq=False)
class BlockKronecker(Map):
    """Block i of g p consecutive channels by (G kron P_i); `shared` G [batch..., g, g], `own` P [batch..., i, p, p].

    As wide as a block of an MX format, it keeps outliers inside their block (BATQuant); K (g + p) a token.
    """

    shared: jax.Array
    own: jax.Array

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.shared.shape[:-2]

    def apply(self, x: jax.Array) -> jax.Array:
        def each(x: jax.Array, G: jax.Array, P: jax.Array) -> jax.Array:
            width = wide(x.dtype)
            parts = x.astype(width).reshape(*x.shape[:-1], P.shape[0], G.shape[0], P.shape[1])
            y = jnp.einsum("...bip,bpq->...biq", parts, P.astype(width), precision="highest")
            y = jnp.einsum("...biq,ij->...bjq", y, G.astype(width), precision="highest")
            return y.reshape(x.shape).astype(x.dtype)

        return batched(each, self.shared.ndim - 2)(x, self.shared, self.own)

    def transpose(self) -> BlockKronecker:
        return BlockKronecker(jnp.swapaxes(self.shared, -1, -2), jnp.swapaxes(self.own, -1, -2))

    def inverse(self) -> BlockKronecker:
        return BlockKronecker(jnp.linalg.inv(self.shared), jnp.linalg.inv(self.own))
