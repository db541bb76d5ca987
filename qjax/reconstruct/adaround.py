"""AdaRound: learn which of its two neighbours a weight is rounded to (catalogue D3).

Nagel et al. 2020, "Up or down? Adaptive rounding for post-training quantization", arXiv:2004.10568. Between the
neighbours l <= w <= u on the grid, the weight used is l + (u - l) h(v), h(v) = clip(1.2 sigmoid(v) - 0.1, 0, 1)
(eq. 23), and sum 1 - |2 h - 1|^beta pulls h to 0 or 1 while beta falls (eq. 24). The paper's neighbours are those of an
integer grid; here they are those of any element, so that tables and small floats learn the same way.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from qjax.formats.format import Format
from qjax.qarray import QArray
from qjax.quantization import dequantize, encode, fit
from qjax.ranges import Range
from qjax.rounding import ceil, floor

STRETCH, SHIFT = 1.2, -0.1
"""The rectified sigmoid's zeta - gamma and gamma: it reaches 0 and 1 at finite v."""

TIE = 2.0**-10

SURE = 30.0
"""|v| of a rounding that is decided: h is 0 or 1 exactly."""


@dataclass(frozen=True)
class AdaRound:
    """The rule; `weight` of the penalty's mean relative to the loss of rounding to nearest, `beta` annealed from..to.

    For the first `warmup` of the steps there is no penalty. Variables: v [batch..., K, N].
    """

    format: Format
    range: Range | None = None
    weight: float = 1.0
    beta: tuple[float, float] = (20.0, 2.0)
    warmup: float = 0.2

    def init(self, w: jax.Array, key: jax.Array) -> dict[str, Any]:
        del key
        constants = bounds(w, self.format, self.range)
        return {"variables": {"v": undecided(w, constants)}, "constants": constants}

    def forward(self, w: jax.Array, theta: Any) -> jax.Array:
        del w
        return between(theta["constants"], rectified(theta["variables"]["v"]))

    def settle(self, theta: Any) -> Any:
        return {**theta, "variables": {"v": decided(theta["variables"]["v"])}}

    def penalty(self, theta: Any, progress: jax.Array) -> jax.Array:
        return self.weight * indecision(theta["variables"]["v"], progress, self.beta, self.warmup)

    def harden(self, w: jax.Array, theta: Any) -> QArray:
        return encode(theta["constants"]["grid"], self.forward(w, theta))


def bounds(w: jax.Array, fmt: Format, range: Range | None = None) -> dict[str, Any]:
    """The grid of `w` and the values below and above each weight on it, float32."""
    grid = fit(w.astype(jnp.float32), fmt, axis=-2, batch_axes=w.ndim - 2, range=range)
    below, above = (dequantize(encode(grid, w, rounding)) for rounding in (floor, ceil))
    return {"grid": grid, "below": below, "above": above}


def between(constants: Any, share: jax.Array) -> jax.Array:
    """below + share (above - below): exactly one of them where the share is 0 or 1."""
    below, above = constants["below"], constants["above"]
    return jnp.where(share < 1, below + (above - below) * share, above)


def rectified(v: jax.Array) -> jax.Array:
    """h(v) of eq. 23."""
    return jnp.clip(STRETCH * jax.nn.sigmoid(v) + SHIFT, 0.0, 1.0)


def undecided(w: jax.Array, constants: Any) -> jax.Array:
    """v at which the weight used is `w` itself (the nearer bound where `w` lies beyond the range).

    A hair on the side that rounding to nearest takes, so that a tie (every absmax/7.5 is one) decides as it does.
    """
    below, above = constants["below"], constants["above"]
    gap = above - below
    share = jnp.clip(jnp.where(gap > 0, (w - below) / jnp.where(gap > 0, gap, 1.0), 0.0), 0.0, 1.0)
    up = dequantize(encode(constants["grid"], w.astype(jnp.float32))) == above
    share = jnp.where(up, jnp.maximum(share, 0.5 + TIE), jnp.minimum(share, 0.5 - TIE))
    share = (share - SHIFT) / STRETCH
    return jnp.log(share) - jnp.log1p(-share)


def decided(v: jax.Array) -> jax.Array:
    """v pushed to where h is exactly 0 or 1."""
    return jnp.where(rectified(v) > 0.5, jnp.full_like(v, SURE), jnp.full_like(v, -SURE))


def indecision(v: jax.Array, progress: jax.Array, beta: tuple[float, float], warmup: float) -> jax.Array:
    """The mean of 1 - |2 h(v) - 1|^beta, in [0, 1]; beta falls by half a cosine after the warm-up; 0 before it."""
    late = jnp.clip((progress - warmup) / (1.0 - warmup), 0.0, 1.0)
    now = beta[1] + 0.5 * (beta[0] - beta[1]) * (1.0 + jnp.cos(late * jnp.pi))
    distance = jnp.abs(2.0 * rectified(v) - 1.0)
    # |.|^beta has no slope at 0 for beta >= 2; a floor keeps its logarithm finite.
    value = 1.0 - jnp.exp(now * jnp.log(jnp.maximum(distance, 1e-6)))
    return jnp.where(progress < warmup, jnp.float32(0), jnp.mean(value))
