"""SignRound, the first AutoRound: learn a shift of each weight and a shrinkage of each range (catalogue D7).

Cheng et al. 2023, "Optimize weight rounding via signed gradient descent for the quantization of LLMs",
arXiv:2309.05516: W is used as s clip(round(W/s + V)), V in [-1/2, 1/2], with s from the block's range [beta min, alpha
max], alpha and beta in [0, 1]; every variable moves by the sign of its gradient (`sign_descent`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from qjax.formats.format import Format
from qjax.qarray import QArray
from qjax.quantization import encode
from qjax.reconstruct.rule import Straight
from qjax.reconstruct.straight import block_scales, moved, project, scaled_grid

LIMITS = {"shift": (-0.5, 0.5), "low": (0.0, 1.0), "high": (0.0, 1.0)}


@dataclass(frozen=True)
class SignRound(Straight):
    """The rule. Variables: shift [batch..., K, N] in gaps of the grid, low and high [batch..., blocks]."""

    format: Format

    def init(self, w: jax.Array, key: jax.Array) -> dict[str, Any]:
        del key
        scale = block_scales(w, self.format)
        ones = jnp.ones_like(scale)
        return {"variables": {"shift": jnp.zeros(w.shape, jnp.float32), "low": ones, "high": ones}, "constants": {}}

    def forward(self, w: jax.Array, theta: Any) -> jax.Array:
        v = theta["variables"]
        grid, learned = scaled_grid(w, self.format, v["low"], v["high"])
        return project(grid, moved(grid, w, learned, v["shift"]), learned)

    def harden(self, w: jax.Array, theta: Any) -> QArray:
        v = theta["variables"]
        grid, learned = scaled_grid(w, self.format, v["low"], v["high"])
        return encode(grid, moved(grid, w, learned, v["shift"]))
