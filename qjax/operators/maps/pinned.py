"""Pinned(values; magnitude): what is massive is replaced by a constant of its channel."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp

from qjax.nodes import node
from qjax.operators.operator import Map, NotAffine


@node
@dataclass(frozen=True, eq=False)
class Pinned(Map):
    """x, but values[k] wherever |x_k| >= magnitude; values [K], NaN for channels that are left alone.

    The intervention on massive activations of Sun et al. 2024 (arXiv:2402.17762, section 3).

    >>> Pinned(jnp.array([0.0, jnp.nan]), 10.0).apply(jnp.array([[50.0, 50.0], [5.0, 5.0]])).tolist()
    [[0.0, 50.0], [5.0, 5.0]]
    """

    values: jax.Array
    magnitude: float = field(metadata={"static": True})
    nonlinear: ClassVar[bool] = True

    def apply(self, x: jax.Array) -> jax.Array:
        values = jnp.broadcast_to(self.values.astype(x.dtype), x.shape)
        return jnp.where((jnp.abs(x) >= self.magnitude) & ~jnp.isnan(values), values, x)

    def transpose(self) -> Map:
        raise NotAffine("Pinned replaces large activations; it has no transpose")
