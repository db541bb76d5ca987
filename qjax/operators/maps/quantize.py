"""Quantize(format, range): activations rounded to a format on their way in."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from qjax.coding import decode, encode, saturated
from qjax.formats.format import FULL, Format
from qjax.formats.spelling import as_format
from qjax.nodes import node
from qjax.operators.operator import Map, NotAffine
from qjax.qarray import Grid, QArray
from qjax.quantization import fake_quantize, fit, quantize
from qjax.ranges import Range


@node
@dataclass(frozen=True, eq=False)
class Quantize(Map):
    """x rounded to `format` along its channels, straight-through in the backward pass.

    The format says the granularity: "int8" has one scale a token, "int8_g64" or "mxfp8_e4m3" one a block of channels,
    "int8_tensor" one for all tokens. With `grid` None scales are computed from x (dynamic), from each block's `range`
    (`qjax.ranges`; its extremes if None); a grid holds calibrated ones (`Quantize.static`, `Quantize.calibrated`), and
    `outer` the calibrated tensor scale of a format whose blocks follow x under it, as in NVFP4 (`Quantize.under`).
    No matrix describes it: `affine` of anything around it raises NotAffine.
    """

    format: Format = field(metadata={"static": True})
    grid: Grid | None = None
    range: Range | None = field(default=None, metadata={"static": True})
    outer: jax.Array | None = None
    nonlinear: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "format", as_format(self.format))  # its name will do

    @classmethod
    def dynamic(cls, format: Format | str, range: Range | None = None) -> Quantize:
        """Scales computed from every input."""
        return cls(as_format(format), None, range)

    @classmethod
    def static(cls, format: Format | str, low: Any, high: Any) -> Quantize:
        """The calibrated range [low, high]: scalars, or one of each a channel [K] for a format finer than the tensor.

        ValueError for a format whose scales follow the tokens, see `calibrated`.

        >>> Quantize.static("int8_tensor", -1.0, 1.0).apply(jnp.array([[0.5, 3.0]]))[0, 1] < 1.01
        Array(True, dtype=bool)
        """
        ends = jnp.stack([jnp.asarray(low, jnp.float32), jnp.asarray(high, jnp.float32)])
        return cls.calibrated(format, ends.reshape(2, -1))

    @classmethod
    def calibrated(
        cls, format: Format | str, x: jax.Array, weights: jax.Array | None = None, range: Range | None = None
    ) -> Quantize:
        """Static scales from a sample x [S, K or 1] with weights, such as `qjax.statistics.Points`, by an estimator.

        One column serves a per-tensor format. A format with a scale for each block of channels (`block=n`, 1 for each
        channel) takes all K, its `across` being FULL: one scale then spans all tokens.

        Raises ValueError for a format whose scales follow the tokens.
        """
        fmt = as_format(format)
        if fmt.across != FULL or (x.shape[-1] == 1 and not fmt.tensor):
            raise ValueError(
                f"static activation ranges need scales that span the tokens, as in int8_tensor or in a format with "
                f"across=FULL on points of every channel; {fmt.name} on points {x.shape} has others"
            )
        return cls(fmt, _fitted(x, weights, fmt=fmt, range=range))

    @classmethod
    def under(cls, format: Format | str, outer: Any) -> Quantize:
        """Scales of blocks computed from every input, under one calibrated tensor scale: a positive scalar.

        ValueError for a format that has none.

        >>> Quantize.under("nvfp4", 0.5).apply(jnp.full((1, 16), 7.0))[0, 0]
        Array(6., dtype=float32)
        """
        fmt = as_format(format)
        if not isinstance(fmt.scale, Format) or fmt.scale.block != FULL or fmt.scale.across != FULL:
            raise ValueError(f"{fmt.name} has no tensor scale above those of its blocks, as nvfp4 has")
        return cls(fmt, outer=jnp.asarray(outer, jnp.float32).reshape(1, 1))

    @property
    def batch_shape(self) -> tuple[int, ...]:
        scales = jax.tree.leaves((() if self.grid is None else self.grid.scales, self.outer))
        return scales[0].shape[:-2] if scales else ()

    def apply(self, x: jax.Array) -> jax.Array:
        if self.grid is not None:
            return on_grid(x, self.grid)
        if self.outer is not None:
            batch = self.batch_shape
            tokens = x.reshape(*x.shape[: len(batch)], -1, x.shape[-1])
            grid = fit(tokens, self.format, -1, len(batch), self.range, outer=(self.outer, None))
            return on_grid(tokens, grid).reshape(x.shape)
        flat = x.reshape(-1, x.shape[-1])
        return fake_quantize(flat, self.format, axis=-1, range=self.range).reshape(x.shape)

    def codes(self, x: jax.Array) -> QArray:
        """What `apply` rounds x [tokens, K] to, before it is dequantized; for a map without batch axes."""
        if self.grid is not None:
            return encode(self.grid, x)
        if self.outer is not None:
            return encode(fit(x, self.format, -1, 0, self.range, outer=(self.outer, None)), x)
        return quantize(x, self.format, axis=-1, range=self.range)

    def transpose(self) -> Map:
        raise NotAffine(f"Quantize({self.format.name}) rounds activations; it has no transpose")


@functools.partial(jax.jit, static_argnames=("fmt", "range"))
def _fitted(x: jax.Array, weights: jax.Array | None, *, fmt: Format, range: Range | None) -> Grid:
    return fit(x, fmt, axis=-1, range=range, weights=weights)


@jax.custom_jvp
def on_grid(x: jax.Array, grid: Grid) -> jax.Array:
    """Round x [batch..., tokens..., K] to a grid of one scale for all tokens, or of one a block of channels.

    `batch` are the batch axes of the grid. Straight-through: the derivative in x is 1, in the grid 0.
    """
    scales = jax.tree.leaves(grid.scales)
    batch = scales[0].ndim - 2 if scales else 0
    tokens = x.reshape(*x.shape[:batch], -1, x.shape[-1])
    return saturated(decode(encode(grid, tokens)), x.dtype).reshape(x.shape)


@on_grid.defjvp
def _straight_through(primals: Any, tangents: Any) -> tuple[jax.Array, jax.Array]:
    return on_grid(*primals), tangents[0]
