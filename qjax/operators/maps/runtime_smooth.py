"""RuntimeSmooth(format, group): channels divided by maxima of the input itself before each token is rounded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp

from qjax.formats.format import FULL, Format
from qjax.formats.spelling import as_format
from qjax.nodes import node
from qjax.operators.operator import Map, NotAffine
from qjax.quantization import fake_quantize


@node
@dataclass(frozen=True, eq=False)
class RuntimeSmooth(Map):
    """s Q(x / s), with a scale s for `group` channels of like size: Runtime Smooth (arXiv:2409.20361, section 3.2).

    Channels are ordered by their largest magnitude over all tokens of x; each run of `group` of them is divided by the
    largest of its run, then every token is rounded with one scale. Nothing is calibrated. A kernel reorders the
    channels for real and multiplies the product of each group by s. No matrix describes it.
    """

    format: Format = field(metadata={"static": True})
    group: int = field(metadata={"static": True})
    nonlinear: ClassVar[bool] = True

    @classmethod
    def of(cls, format: Format | str, group: int = 128) -> RuntimeSmooth:
        """ValueError for a format without one scale a token, or a group below 1."""
        fmt = as_format(format)
        if fmt.block != FULL or fmt.across != 1 or fmt.alpha is not None or group < 1:
            raise ValueError(f"RuntimeSmooth: {fmt.name} in groups of {group}; give one scale a token, such as int4")
        return cls(fmt, group)

    def apply(self, x: jax.Array) -> jax.Array:
        flat = x.astype(jnp.float32).reshape(-1, x.shape[-1])
        scale = group_maxima(jnp.max(jnp.abs(flat), axis=0), self.group)[None]
        return (fake_quantize(flat / scale, self.format, axis=-1) * scale).astype(x.dtype).reshape(x.shape)

    def transpose(self) -> Map:
        raise NotAffine(f"RuntimeSmooth({self.format.name}) rounds activations; it has no transpose")


def group_maxima(size: jax.Array, group: int) -> jax.Array:
    """For sizes [K] the largest of the `group` that each belongs to in descending order; 1 where that is 0.

    >>> group_maxima(jnp.array([1.0, 8.0, 2.0, 4.0]), 2).tolist()
    [2.0, 8.0, 2.0, 8.0]
    """
    order = jnp.argsort(-size)
    first = jnp.arange(size.size) // group * group
    leaders = size[order][first]
    return jnp.zeros_like(size).at[order].set(jnp.where(leaders > 0, leaders, 1.0))
