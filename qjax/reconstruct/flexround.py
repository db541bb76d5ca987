"""FlexRound: learn by how much each weight is divided before it is rounded (catalogue D6).

Lee et al. 2023, "FlexRound: learnable rounding based on element-wise division for post-training quantization",
arXiv:2306.00317, eq. 2: W is used as s1 round(W / (s1 S2 s3)), with s1 a block's step, S2 of W's shape and s3 one
number an output, all positive. The division makes a variable's update proportional to |W|, so that large weights travel
far.
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
from qjax.reconstruct.straight import block_scales, project, scaled_grid


@dataclass(frozen=True)
class FlexRound(Straight):
    """The rule. Variables, logarithms of factors: s1 [batch..., blocks], s2 [batch..., K, N], s3 [batch..., 1, N]."""

    format: Format

    def init(self, w: jax.Array, key: jax.Array) -> dict[str, Any]:
        del key
        scale = block_scales(w, self.format)
        zeros = {"s1": scale, "s2": w, "s3": w[..., :1, :]}
        return {"variables": {k: jnp.zeros(v.shape, jnp.float32) for k, v in zeros.items()}, "constants": {}}

    def forward(self, w: jax.Array, theta: Any) -> jax.Array:
        v = theta["variables"]
        grid, learned = scaled_grid(w, self.format, jnp.exp(v["s1"]), jnp.exp(v["s1"]))
        return project(grid, divided(w, v), learned)

    def harden(self, w: jax.Array, theta: Any) -> QArray:
        v = theta["variables"]
        grid, _ = scaled_grid(w, self.format, jnp.exp(v["s1"]), jnp.exp(v["s1"]))
        return encode(grid, divided(w, v))


def divided(w: jax.Array, variables: Any) -> jax.Array:
    """W / (S2 s3), float32."""
    return w.astype(jnp.float32) * jnp.exp(-variables["s2"] - variables["s3"])
