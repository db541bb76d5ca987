"""Quantize(format, range): activations rounded to a format on their way in."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from qjax.formats.format import Format
from qjax.formats.spelling import as_format
from qjax.operators.operator import Map, NotAffine
from qjax.qarray import Grid
from qjax.quantization import decode_with, encode_with, fake_quantize, fit, steps


@jax.tree_util.register_dataclass
@dataclass(frozen=True, eq=False)
class Quantize(Map):
    """x rounded to `format` along its channels, straight-through in the backward pass.

    The format says the granularity: "int8" has one scale a token, "int8_g64" or "mxfp8_e4m3" one a block of channels,
    "int8_tensor" one for all tokens. With `grid` None scales are computed from x (dynamic); a grid holds calibrated
    ones (`Quantize.static`). No matrix describes it: `affine` of anything around it raises NotAffine.
    """

    format: Format = field(metadata={"static": True})
    grid: Grid | None = None
    nonlinear: ClassVar[bool] = True

    @classmethod
    def dynamic(cls, format: Format | str) -> Quantize:
        """Scales computed from every input."""
        return cls(as_format(format))

    @classmethod
    def static(cls, format: Format | str, low: Any, high: Any) -> Quantize:
        """A per-tensor format with the calibrated range [low, high]; ValueError for a format with finer scales.

        >>> Quantize.static("int8_tensor", -1.0, 1.0).apply(jnp.array([[0.5, 3.0]]))[0, 1] < 1.01
        Array(True, dtype=bool)
        """
        fmt = as_format(format)
        if not fmt.tensor:
            raise ValueError(
                f"static activation ranges need a per-tensor format, got {fmt.name}: its scales follow the input"
            )
        ends = jnp.stack([jnp.asarray(low, jnp.float32), jnp.asarray(high, jnp.float32)])
        return cls(fmt, fit(ends.reshape(1, 2), fmt, axis=-1))

    @property
    def batch_shape(self) -> tuple[int, ...]:
        scales = () if self.grid is None else jax.tree.leaves(self.grid.scales)
        return scales[0].shape[:-2] if scales else ()

    def apply(self, x: jax.Array) -> jax.Array:
        if self.grid is not None:
            return on_grid(x, self.grid)
        flat = x.reshape(-1, x.shape[-1])
        return fake_quantize(flat, self.format, axis=-1).reshape(x.shape)

    def transpose(self) -> Map:
        raise NotAffine(f"Quantize({self.format.name}) rounds activations; it has no transpose")


@jax.custom_jvp
def on_grid(x: jax.Array, grid: Grid) -> jax.Array:
    """Round x [..., K] to a per-tensor grid; straight-through: the derivative in x is 1, in the grid 0."""
    scale, offset = steps(grid)

    def spread(step: jax.Array | None) -> jax.Array | None:
        return None if step is None else jnp.broadcast_to(step.reshape(()), x.shape)

    scale, offset = spread(scale), spread(offset)
    table = None if grid.table is None else grid.table.reshape(*(1,) * x.ndim, -1)
    codes = encode_with(grid.meta, x.astype(jnp.float32), scale, offset, table)
    return decode_with(grid.meta, codes, scale, offset, table).astype(x.dtype)


@on_grid.defjvp
def _straight_through(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return on_grid(*primals), tangents[0]
