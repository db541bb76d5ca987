"""TesseraQ: decide the surest roundings first, a share at a time, and tune the rest and the scales around them.

Li and Panda 2024, "TesseraQ: ultra low-bit LLM post-training quantization with block reconstruction", arXiv:2410.19103
(catalogue D8). AdaRound's relaxation without its penalty: rounds begin by deciding the variables v whose h(v) is
farthest from 1/2, until hardly any is left (progressive adaptive rounding), and between them the undecided ones and a
factor 2 h(s) of every scale are learned. The schedule and the order of steps are those of the authors' code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax import lax

from qjax.formats.format import Format
from qjax.qarray import QArray
from qjax.quantization import dequantize, encode, fit
from qjax.reconstruct.adaround import SURE, bounds, decided, rectified, undecided
from qjax.reconstruct.rule import Straight
from qjax.reconstruct.straight import block_scales, exactly, scaled_grid
from qjax.rounding import ceil, floor

SOFT = (
    0.8,
    0.65,
    0.5,
    0.43,
    0.38,
    0.34,
    0.3,
    0.27,
    0.24,
    0.21,
    0.18,
    0.15,
    0.12,
    0.1,
    0.08,
    0.06,
    0.04,
    0.02,
    0.01,
    0.005,
)
"""The share of roundings that is still open after each of the authors' twenty decisions."""


@dataclass(frozen=True)
class TesseraQ(Straight):
    """The rule. Variables: v [batch..., K, N] as AdaRound's, scale [batch..., blocks], at 0 the scale as it was.

    The factor reaches the stored scales as their type allows: those of powers of two move by jumps.
    """

    format: Format

    def init(self, w: jax.Array, key: jax.Array) -> dict[str, Any]:
        del key
        grid = fit(w.astype(jnp.float32), self.format, axis=-2, batch_axes=w.ndim - 2)
        return {
            "variables": {
                "v": undecided(w, bounds(w, self.format)),
                "scale": jnp.zeros_like(block_scales(w, self.format)),
            },
            "constants": {"below": encode(grid, w, floor), "above": encode(grid, w, ceil)},
        }

    def forward(self, w: jax.Array, theta: Any) -> jax.Array:
        stored, learned = _rescaled(self.format, w, theta)
        share = rectified(theta["variables"]["v"])
        return exactly(_between(stored, share), _between(learned, share))

    def settle(self, theta: Any) -> Any:
        return {**theta, "variables": {**theta["variables"], "v": decided(theta["variables"]["v"])}}

    def harden(self, w: jax.Array, theta: Any) -> QArray:
        (below, above), _ = _rescaled(self.format, w, theta)
        up = rectified(theta["variables"]["v"]) > 0.5
        up = jnp.pad(up, [(0, size - n) for size, n in zip(below.codes.shape, up.shape, strict=True)])
        return dataclasses.replace(below, codes=jnp.where(up, above.codes, below.codes))


Ends = tuple[QArray, QArray]


def _rescaled(fmt: Format, w: jax.Array, theta: Any) -> tuple[Ends, Ends]:
    """The arrays below and above `w`, their scales multiplied by what is learned: as stored, and differentiable."""
    factor = 2.0 * rectified(theta["variables"]["scale"])
    grid, (scale, offset) = scaled_grid(w, fmt, factor, factor)
    ends = theta["constants"]["below"], theta["constants"]["above"]
    if fmt.offset == "zero_point":  # does not move with the scale
        return _each(ends, scales=grid.scales), _each(ends, scales=(scale,))
    return _each(ends, scales=grid.scales, offset=grid.offset), _each(ends, scales=(scale,), offset=offset)


def _each(ends: Ends, **changes: Any) -> Ends:
    below, above = (dataclasses.replace(end, **changes) for end in ends)
    return below, above


def _between(ends: Ends, share: jax.Array) -> jax.Array:
    below, above = (dequantize(end).astype(jnp.float32) for end in ends)
    return jnp.where(share < 1, below + (above - below) * share, above)


class Rounds(NamedTuple):
    """Steps taken, int32, and the state of the descent since the round began."""

    steps: jax.Array
    inner: Any


def progressive_rounding(
    rate: float = 1e-3, every: int = 250, soft: Sequence[float] = SOFT, decay: float = 1e-4
) -> optax.GradientTransformation:
    """The optimizer: rounds of `every` steps, the first of which decides all but a share `soft` of each v.

    Between decisions Adam descends at `rate`, anew in each round; what is decided stays; `decay` is the weight decay of
    every other variable. After the last round no more is decided. `update` needs the parameters.
    """
    shares = jnp.asarray(soft, jnp.float32)

    def rounding(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: path[-1] == jax.tree_util.DictKey("v"), params)

    def others(params: Any) -> Any:
        return jax.tree.map(lambda own: not own, rounding(params))

    descent = optax.chain(optax.add_decayed_weights(decay, mask=others), optax.adam(rate))

    def init(params: Any) -> Rounds:
        return Rounds(jnp.zeros((), jnp.int32), descent.init(params))

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Rounds]:
        if params is None:
            raise ValueError("progressive_rounding: update(updates, state, params) needs the parameters")
        number = state.steps // every
        soft_share = shares[jnp.minimum(number, len(soft) - 1)]
        own = rounding(params)

        def decide(_: Any) -> tuple[Any, Any]:
            moves = jax.tree.map(lambda v, is_v: _decision(v, soft_share) if is_v else jnp.zeros_like(v), params, own)
            return moves, descent.init(params)

        def descend(inner: Any) -> tuple[Any, Any]:
            moves, inner = descent.update(updates, inner, params)
            open_only = jax.tree.map(
                lambda m, v, is_v: jnp.where(jnp.abs(v) < SURE, m, 0) if is_v else m, moves, params, own
            )
            return open_only, inner

        starts = (state.steps % every == 0) & (number < len(soft))
        moves, inner = lax.cond(starts, decide, descend, state.inner)
        return moves, Rounds(state.steps + 1, inner)

    return optax.GradientTransformation(init, update)


def _decision(v: jax.Array, soft: jax.Array) -> jax.Array:
    """What moves the surest of `v` to where they are decided: all whose |h - 1/2| is above the quantile `soft`."""
    surety = jnp.abs(rectified(v) - 0.5)
    # v + (SURE - v) is SURE exactly (its mantissa is even, so a tie goes to it): what is decided is known by its size.
    return jnp.where(surety > jnp.quantile(surety, soft), decided(v) - v, 0.0)
