"""Augment(source): some channels repeated behind the others."""

from __future__ import annotations

from dataclasses import dataclass

import jax
import jax.numpy as jnp

from qjax.nodes import node
from qjax.operators.operator import Map, batched


@node
@dataclass(frozen=True, eq=False)
class Augment(Map):
    """[x, x[..., source]], source [batch..., E] ints: outlier channel splitting (OCS), augmented residual channels."""

    source: jax.Array

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.source.shape[:-1]

    def apply(self, x: jax.Array) -> jax.Array:
        def widened(x: jax.Array, source: jax.Array) -> jax.Array:
            return jnp.concatenate([x, jnp.take(x, source, axis=-1)], axis=-1)

        return batched(widened, self.source.ndim - 1)(x, self.source)

    def transpose(self) -> Gather:
        return Gather(self.source)

    def features(self, outputs: int) -> int:
        return outputs - self.source.shape[-1]

    def results(self, inputs: int) -> int:
        return inputs + self.source.shape[-1]


@node
@dataclass(frozen=True, eq=False)
class Gather(Map):
    """The transpose of `Augment`: the repeated channels are added back to their sources."""

    source: jax.Array

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.source.shape[:-1]

    def apply(self, x: jax.Array) -> jax.Array:
        def added(x: jax.Array, source: jax.Array) -> jax.Array:
            K = x.shape[-1] - source.size
            return x[..., :K].at[..., source].add(x[..., K:])

        return batched(added, self.source.ndim - 1)(x, self.source)

    def transpose(self) -> Augment:
        return Augment(self.source)

    def features(self, outputs: int) -> int:
        return outputs + self.source.shape[-1]

    def results(self, inputs: int) -> int:
        return inputs - self.source.shape[-1]
