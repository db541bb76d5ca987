"""GOBO: what does not look like a draw from the layer's normal distribution stays float, the rest shares a few values.

Zadeh et al., "GOBO: quantizing attention-based NLP models for low latency and energy efficient inference", 2020
(arXiv:2005.03842, sections IV-V; catalogue E12): outliers have a log density below -4; the others are sorted into
groups of equal population, and from the groups' means on, assignment and means alternate for as long as the sum of
absolute errors falls (not of squares, as k-means would watch).
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from qjax.coding import encode
from qjax.formats.format import FULL
from qjax.formats.table import Table
from qjax.qarray import Grid, Meta, QArray


class Clusters(NamedTuple):
    """The quantized matrix, and the sum of absolute errors of the weights that count in every step, `[steps]`.

    NaN behind the step whose error did not fall any more; the tables of the step before it stay.
    """

    q: QArray
    errors: Array


class _State(NamedTuple):
    """Steps done, the next table, the best and its error, whether the last step was better, all errors."""

    done: Array
    table: Array
    best: Array
    least: Array
    falls: Array
    errors: Array


def unlikely(w: Array, threshold: float = -4.0) -> Array:
    """log N(w; mean, std) - threshold, negated: positive where an entry of `w [K, N]` is an outlier."""
    w = w.astype(jnp.float32)
    std = jnp.std(w)
    density = -0.5 * jnp.square((w - jnp.mean(w)) / std) - jnp.log(std) - 0.5 * jnp.log(jnp.float32(2 * jnp.pi))
    return threshold - density


def cluster(w: Array, counted: Array, bits: int = 3, *, steps: int = 50) -> Clusters:
    """`w [K, N]` as codes into one table of 2^bits values, fitted to the entries where `counted [K, N]` (bool).

    Raises:
        ValueError: bits not between 1 and 8.
    """
    if not 1 <= bits <= 8:
        raise ValueError(f"gobo: {bits} bits; a table has 1 to 8")
    return _cluster(w, counted, bits=bits, steps=steps)


@partial(jax.jit, static_argnames=("bits", "steps"))
def _cluster(w: Array, counted: Array, *, bits: int, steps: int) -> Clusters:
    levels = 2**bits
    element = Table(f"clusters{bits}", tuple(float(i) for i in range(levels)))
    x, weight = w.astype(jnp.float32).reshape(-1), counted.reshape(-1)
    number = jnp.arange(levels, dtype=jnp.int32)

    def means(group: Array, otherwise: Array) -> Array:
        def one(i: Array, last: Array) -> Array:
            mine = weight & (group == i)
            size = jnp.sum(mine)
            return jnp.where(size > 0, jnp.sum(jnp.where(mine, x, 0)) / jnp.maximum(size, 1).astype(jnp.float32), last)

        return jnp.sort(lax.map(lambda a: one(*a), (number, otherwise)))

    # Rank among those that count; the others come last and belong to no group.
    order = jnp.argsort(jnp.where(weight, x, jnp.inf))
    total = jnp.sum(weight).astype(jnp.int32)
    place = jnp.zeros(x.shape, jnp.int32).at[order].set(jnp.arange(x.size, dtype=jnp.int32))
    edges = jnp.asarray([i / levels for i in range(1, levels)], jnp.float32) * total.astype(jnp.float32)
    group = jnp.sum(place[:, None] >= jnp.round(edges).astype(jnp.int32)[None, :], axis=1, dtype=jnp.int32)
    first = means(group, jnp.zeros(levels, jnp.float32))

    def step(state: _State) -> _State:
        code = element.encode(x, state.table)
        error = jnp.sum(jnp.where(weight, jnp.abs(x - element.decode(code, state.table)), 0))
        falls = error < state.least
        return _State(
            state.done + 1,
            means(code.astype(jnp.int32), state.table),
            jnp.where(falls, state.table, state.best),
            jnp.minimum(error, state.least),
            falls,
            state.errors.at[state.done].set(error),
        )

    start = _State(
        jnp.int32(0), first, first, jnp.float32(jnp.inf), jnp.bool_(True), jnp.full(steps, jnp.nan, jnp.float32)
    )
    _, _, table, _, _, errors = lax.while_loop(lambda s: s.falls & (s.done < steps), step, start)
    meta = Meta(element, (FULL, FULL), None, dtype=str(w.dtype))
    grid = Grid((), None, table[None, None], meta)
    return Clusters(encode(grid, w), errors)
