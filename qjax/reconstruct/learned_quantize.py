"""LearnedQuantize: the trainable stand-in for a static `Quantize` of one scale, with the ends of its range to learn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import jax
import jax.numpy as jnp

from qjax.formats.format import Format
from qjax.nodes import node
from qjax.operators.maps.quantize import Quantize
from qjax.operators.operator import Map, NotAffine
from qjax.qarray import Grid
from qjax.reconstruct.straight import Steps, project, scaled_grid


@node
@dataclass(frozen=True, eq=False)
class LearnedQuantize(Map):
    """x rounded to `format` in a range whose ends are shares of those of calibration, with the gradients of LSQ.

    `ends` [2, 1] are the least and the largest value, which may follow from what else is learned; `shares` {"low",
    "high"} are logarithms of the factors that multiply them, scalars, 0 at the start. The derivative in x is 1 inside
    the range and 0 beyond it; ends and shares move the step. `harden` gives the map with these values, bit for bit.
    """

    format: Format = field(metadata={"static": True})
    ends: jax.Array
    shares: Mapping[str, jax.Array]
    nonlinear: ClassVar[bool] = True

    def apply(self, x: jax.Array) -> jax.Array:
        grid, learned = self._grid()
        return project(grid, x.reshape(-1, x.shape[-1]), learned).astype(x.dtype).reshape(x.shape)

    def harden(self) -> Quantize:
        return Quantize(self.format, self._grid()[0])

    def transpose(self) -> Map:
        raise NotAffine(f"LearnedQuantize({self.format.name}) rounds activations; it has no transpose")

    def _grid(self) -> tuple[Grid, Steps]:
        return scaled_grid(self.ends, self.format, jnp.exp(self.shares["low"]), jnp.exp(self.shares["high"]))
