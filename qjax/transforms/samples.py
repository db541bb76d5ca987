"""Tokens that a method may compute with: some drawn from all, and those of the largest magnitude."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp

from qjax.statistics import Points, Reservoir
from qjax.transforms.contract import Stage
from qjax.transforms.leaves import Core, transport

# The largest hold the outliers, which a draw of a few tokens misses; the drawn ones hold everything else.
SAMPLE = (Reservoir(64), Reservoir(64, largest=True))


def tokens(path: str, core: Core, stage: Stage) -> tuple[jax.Array, jax.Array]:
    """What meets a leaf's core on the tokens of `SAMPLE`: x `[batch..., S, K]`, and which are there, `[batch..., S]`.

    Of the largest tokens, those that were drawn anyway are not left out; empty slots are zeros of weight 0.
    """
    points = {s.name: s.points(stage.statistics[path][s.name]) for s in SAMPLE}
    found: list[Points] = list(transport(path, core.maps, points).values())
    return _together(found, batch=core.matrix.shape[:-2])


@functools.partial(jax.jit, static_argnames="batch")
def _together(found: list[Points], *, batch: tuple[int, ...]) -> tuple[jax.Array, jax.Array]:
    def joined(parts: list[jax.Array]) -> jax.Array:
        whole = jnp.concatenate(parts, axis=-2)
        return jnp.broadcast_to(whole, (*batch, *whole.shape[-2:]))

    there = joined([p.weights[..., :1] for p in found])
    return jnp.where(there > 0, joined([p.x for p in found]), 0.0), there[..., 0]
