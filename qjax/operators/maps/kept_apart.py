"""Activations rounded but for a few values, which pass in 16 bits or in float: the largest, or those out of range."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax import lax

from qjax.formats.format import FULL, Format
from qjax.formats.spelling import as_format
from qjax.nodes import node
from qjax.operators.maps.quantize import Quantize, on_grid
from qjax.operators.operator import Map, NotAffine
from qjax.quantization import fake_quantize


@node
@dataclass(frozen=True, eq=False)
class KeepLargest(Map):
    """The `count` largest magnitudes of every block of the format as bfloat16, the others rounded by themselves.

    So the block's scale is that of the next largest: OPAL's preserved outliers (arXiv:2409.05902, section 3) and, with
    one scale for the whole tensor, the super activation (arXiv:2411.07191, section 4).
    """

    format: Format = field(metadata={"static": True})
    count: int = field(metadata={"static": True})
    nonlinear: ClassVar[bool] = True

    @classmethod
    def of(cls, format: Format | str, count: int) -> KeepLargest:
        """ValueError for a format whose scales span some of the tokens, or a count that leaves nothing of a block."""
        fmt = as_format(format)
        if (fmt.across != 1 and not fmt.tensor) or count < 1 or (fmt.block != FULL and count >= fmt.block):
            raise ValueError(f"KeepLargest: {count} values of each block of {fmt.name}; give fewer than a block holds")
        return cls(fmt, count)

    def apply(self, x: jax.Array) -> jax.Array:
        k = x.size if self.format.tensor else x.shape[-1]
        n = k if self.format.block == FULL else self.format.block
        flat = x.reshape(-1, k)
        padded = jnp.pad(flat, ((0, 0), (0, -k % n)))
        blocks = padded.reshape(flat.shape[0], -1, n)
        _, place = lax.top_k(jnp.abs(blocks), min(self.count, n))
        kept = jnp.put_along_axis(jnp.zeros(blocks.shape, bool), place, True, axis=-1, inplace=False)
        kept = kept.reshape(padded.shape)[:, :k]
        rest = fake_quantize(jnp.where(kept, jnp.zeros_like(flat), flat), self.format, axis=-1)
        return jnp.where(kept, flat.astype(jnp.bfloat16).astype(x.dtype), rest).reshape(x.shape)

    def transpose(self) -> Map:
        raise NotAffine(f"KeepLargest({self.format.name}) rounds activations; it has no transpose")


@node
@dataclass(frozen=True, eq=False)
class KeepBeyond(Map):
    """What static rounding cuts off added back in float: shadow outliers (arXiv:2407.05858, section 3.3).

    x is rounded in the calibrated range, and what lies beyond an end of it goes through the same weight in float.
    """

    rounding: Quantize
    nonlinear: ClassVar[bool] = True

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return self.rounding.batch_shape

    def apply(self, x: jax.Array) -> jax.Array:
        assert self.rounding.grid is not None
        low, high = (on_grid(jnp.full_like(x, end), self.rounding.grid) for end in (-3e38, 3e38))
        return self.rounding.apply(x) + (x - jnp.clip(x, low, high))

    def transpose(self) -> Map:
        raise NotAffine("KeepBeyond rounds activations; it has no transpose")
