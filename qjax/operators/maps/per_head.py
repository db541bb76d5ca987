"""PerHead(rounding): keys or values of attention rounded under one static scale a head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from qjax.formats.format import Format
from qjax.nodes import node
from qjax.operators.maps.quantize import Quantize
from qjax.operators.operator import Map, NotAffine


@node
@dataclass(frozen=True, eq=False)
class PerHead(Map):
    """x [..., heads, channels], each head by its own entry of `rounding`, whose last batch axis is that of heads.

    What compressed-tensors calls the strategy "attn_head", and vLLM offers for its FP8 cache. No matrix describes it.
    """

    rounding: Quantize
    nonlinear: ClassVar[bool] = True

    @classmethod
    def static(cls, format: Format | str, low: Any, high: Any) -> PerHead:
        """The calibrated ranges [low, high] of every head: one number each [heads].

        >>> tap = PerHead.static("int8_tensor", [-1.0, -2.0], [1.0, 2.0])
        >>> tap.apply(jnp.full((1, 2, 4), 3.0))[0, :, 0].round(1)
        Array([1., 2.], dtype=float32)

        Raises:
            ValueError: as many numbers in `low` as in `high` are needed, and a format that `Quantize.static` takes.
        """
        ends = list(zip(np.ravel(low), np.ravel(high), strict=True))
        heads = [Quantize.static(format, *end) for end in ends]
        return cls(jax.tree.map(lambda *scales: jnp.stack(scales), *heads))

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.rounding.batch_shape[:-1]

    def apply(self, x: jax.Array) -> jax.Array:
        *batch, heads = self.rounding.batch_shape
        if x.ndim < len(batch) + 2 or x.shape[-2] != heads:
            raise ValueError(f"PerHead has {heads} scales; {x.shape} is not [..., {heads} heads, channels]")
        first = jnp.moveaxis(x, -2, len(batch))
        return jnp.moveaxis(self.rounding.apply(first), len(batch), -2)

    def transpose(self) -> Map:
        raise NotAffine(f"PerHead({self.rounding.format.name}) rounds activations; it has no transpose")
