"""LoRA-Rounding: AdaRound whose rounding variables are a low-rank matrix (the rounding of CBQ, catalogue D10).

Ding et al. 2023, "CBQ: cross-block quantization for large language models", arXiv:2312.07950: v = v0 + A B with A
[K, r], B [r, N], where v0 is AdaRound's start (the weight itself) and stays; far fewer variables than weights.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from qjax.formats.format import Format
from qjax.qarray import QArray
from qjax.quantization import encode
from qjax.ranges import Range
from qjax.reconstruct.adaround import between, bounds, decided, indecision, rectified, undecided


@dataclass(frozen=True)
class LoRARounding:
    """The rule. Variables: a [batch..., K, rank], b [batch..., rank, N]; b starts at zero."""

    format: Format
    rank: int = 5
    range: Range | None = None
    weight: float = 1.0
    beta: tuple[float, float] = (20.0, 2.0)
    warmup: float = 0.2

    def init(self, w: jax.Array, key: jax.Array) -> dict[str, Any]:
        constants = bounds(w, self.format, self.range)
        *batch, k, n = w.shape
        a = jax.random.normal(key, (*batch, k, self.rank)) / jnp.sqrt(jnp.float32(self.rank))
        start = {"start": undecided(w, constants), "hard": jnp.zeros((), bool)}
        return {
            "variables": {"a": a, "b": jnp.zeros((*batch, self.rank, n), jnp.float32)},
            "constants": constants | start,
        }

    def forward(self, w: jax.Array, theta: Any) -> jax.Array:
        del w
        v = _rounding(theta)
        v = jnp.where(theta["constants"]["hard"], decided(v), v)
        return between(theta["constants"], rectified(v))

    def settle(self, theta: Any) -> Any:
        return {**theta, "constants": {**theta["constants"], "hard": jnp.ones((), bool)}}

    def penalty(self, theta: Any, progress: jax.Array) -> jax.Array:
        return self.weight * indecision(_rounding(theta), progress, self.beta, self.warmup)

    def harden(self, w: jax.Array, theta: Any) -> QArray:
        return encode(theta["constants"]["grid"], self.forward(w, theta))


def _rounding(theta: Any) -> jax.Array:
    v = theta["variables"]
    return theta["constants"]["start"] + v["a"] @ v["b"]
