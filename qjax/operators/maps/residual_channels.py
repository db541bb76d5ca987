"""ResidualChannels(format, count): rounded channels, and the rounding errors of some as channels of their own."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp

from qjax.formats.format import Format
from qjax.nodes import node
from qjax.operators.operator import Map, NotAffine
from qjax.quantization import fake_quantize


@node
@dataclass(frozen=True, eq=False)
class ResidualChannels(Map):
    """[Q(x), Q(x - Q(x)) of the last `count` channels]: ARCQuant's augmented input (arXiv:2601.07475, section 3).

    In front of a matrix whose last `count` rows are repeated behind it, these channels are rounded twice and one
    product in one format serves all. Scales are computed from x. No matrix describes it.
    """

    format: Format = field(metadata={"static": True})
    count: int = field(metadata={"static": True})
    nonlinear: ClassVar[bool] = True

    def apply(self, x: jax.Array) -> jax.Array:
        flat = x.reshape(-1, x.shape[-1])
        q = fake_quantize(flat, self.format, axis=-1)
        cut = flat.shape[-1] - self.count
        left = flat[:, cut:] - q[:, cut:]
        whole = jnp.concatenate([q, fake_quantize(left, self.format, axis=-1)], axis=-1)
        return whole.reshape(*x.shape[:-1], whole.shape[-1])

    def transpose(self) -> Map:
        raise NotAffine(f"ResidualChannels({self.format.name}) rounds activations; it has no transpose")

    def features(self, outputs: int) -> int:
        return outputs - self.count

    def results(self, inputs: int) -> int:
        return inputs + self.count
