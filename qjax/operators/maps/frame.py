"""Frame(F): blocks of channels into more coefficients than they have channels."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from qjax.nodes import node
from qjax.operators.operator import Map, batched, wide


@node
@dataclass(frozen=True, eq=False)
class Frame(Map):
    """Every n consecutive channels, x @ F, F [batch..., n, m]; n divides K, and K' = K m / n.

    F follows from its sizes (`harmonic_frame`), so that it counts no bits.
    """

    F: jax.Array

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.F.shape[:-2]

    def apply(self, x: jax.Array) -> jax.Array:
        def each(x: jax.Array, F: jax.Array) -> jax.Array:
            n, m = F.shape
            width = wide(x.dtype)
            parts = x.astype(width).reshape(*x.shape[:-1], -1, n)
            y = jnp.einsum("...n,nm->...m", parts, F.astype(width), precision="highest")
            return y.reshape(*x.shape[:-1], x.shape[-1] // n * m).astype(x.dtype)

        return batched(each, self.F.ndim - 2)(x, self.F)

    def transpose(self) -> Frame:
        return Frame(jnp.swapaxes(self.F, -1, -2))

    def features(self, outputs: int) -> int:
        return outputs // self.F.shape[-1] * self.F.shape[-2]

    def results(self, inputs: int) -> int:
        return inputs // self.F.shape[-2] * self.F.shape[-1]

    def bits(self) -> float:
        return 0.0
