"""AdaQuant: learn a continuous change of each weight and the step it is rounded with (the layer part of catalogue D5).

Hubara et al. 2020, "Improving post training neural quantization: layer-wise calibration and integer programming",
arXiv:2006.10518, eq. 2: min over V, s of ||W X - Q_s(W + V) X||^2, gradients straight through the rounding. A weight
may move by more than one step, unlike AdaRound's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from qjax import blocks
from qjax.formats.format import Format
from qjax.qarray import QArray
from qjax.quantization import encode, fit
from qjax.reconstruct.rule import Straight
from qjax.reconstruct.straight import block_scales, project, scaled_grid


@dataclass(frozen=True)
class AdaQuant(Straight):
    """The rule. Variables: v [batch..., K, N] in units of the block's first step, s its logarithmic factor [blocks]."""

    format: Format

    def init(self, w: jax.Array, key: jax.Array) -> dict[str, Any]:
        del key
        scale = block_scales(w, self.format)
        grid = fit(w, self.format, axis=-2, batch_axes=w.ndim - 2)
        core = tuple(n + p for n, p in zip(w.shape[-2:], grid.meta.padding, strict=True))
        unit = blocks.unpad(blocks.enlarge(scale, core, grid.meta.block), grid.meta.padding)
        return {
            "variables": {"v": jnp.zeros(w.shape, jnp.float32), "s": jnp.zeros_like(scale)},
            "constants": {"unit": unit},
        }

    def forward(self, w: jax.Array, theta: Any) -> jax.Array:
        grid, learned, x = self._moved(w, theta)
        return project(grid, x, learned)

    def harden(self, w: jax.Array, theta: Any) -> QArray:
        grid, _, x = self._moved(w, theta)
        return encode(grid, x)

    def _moved(self, w: jax.Array, theta: Any) -> tuple[Any, Any, jax.Array]:
        v = theta["variables"]
        grid, learned = scaled_grid(w, self.format, jnp.exp(v["s"]), jnp.exp(v["s"]))
        return grid, learned, w.astype(jnp.float32) + v["v"] * theta["constants"]["unit"]
