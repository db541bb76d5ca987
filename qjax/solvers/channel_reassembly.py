"""Outlier channels taken apart and similar channels put together, at the same width: QLLM (catalogue G12).

Liu et al., "QLLM: accurate and efficient low-bitwidth quantization for large language models", 2023 (arXiv:2310.08041),
section 4.1. A channel whose largest magnitude M exceeds a threshold t becomes T = ceil(M / t) copies of x/T, each
against the same row of the weights. For every channel so added two similar ones become one: their mean against the sum
of their rows, which puts (x_i - x_j)(w_i - w_j)/2 of the output at stake. The pairs are those of bipartite matching:
every even channel proposes the odd one with which it loses least, and the best proposals are taken; channels taken
apart are left alone. The threshold is the one of a grid under which the layer, its inputs and weights rounded, is
nearest to the float layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from qjax.formats.format import Format
from qjax.operators.maps.reassemble import Reassemble
from qjax.operators.sparse import narrowest
from qjax.quantization import fake_quantize

HALVINGS = 40  # of the interval in which the smallest threshold lies


class Search(NamedTuple):
    """`map` is the reassembly, `added` how many channels it adds and merges, `threshold` t; of the grid, `errors`.

    `errors [points]` are squared errors of the output, infinite where too few channels are left to be merged; the first
    is that of no reassembly.
    """

    map: Reassemble
    added: Array
    threshold: Array
    errors: Array


@partial(jax.jit, static_argnames=("weights", "inputs", "points", "ratio"))
def search(
    ws: Sequence[Array],
    x: Array,
    there: Array,
    size: Array,
    *,
    weights: Format,
    inputs: Format,
    points: int = 100,
    ratio: float = 0.2,
) -> Search:
    """The reassembly for all `ws [K, N_i]` that read tokens `x [S, K]`, of which `there [S]` > 0 count.

    `size [K]` is the largest magnitude of each channel over all data. The grid is geometric, from the largest of them
    (no reassembly) down to the smallest threshold that adds no more than `ratio` K channels; the authors' is linear
    with steps of 0.5 or less. Of equal errors the larger threshold is taken.
    """
    w = jnp.concatenate([w.astype(jnp.float32) for w in ws], axis=-1)
    x = jnp.where(there[:, None] > 0, x, 0.0)
    want = jnp.matmul(x, w, precision="highest")
    lost = losses(x, w)
    most = jnp.maximum(jnp.max(size), jnp.finfo(jnp.float32).tiny)

    def error(t: Array) -> Array:
        m, _, possible = reassembly(size, lost, t)
        rounded_x = fake_quantize(m.apply(x), inputs, axis=-1)
        rounded_w = fake_quantize(reassembled(m, w), weights, axis=-2)
        off = jnp.matmul(rounded_x, rounded_w, precision="highest") - want
        return jnp.where(possible, jnp.sum(off * off), jnp.inf)

    least = _smallest(size, most, int(ratio * size.size))
    grid = most * (least / most) ** (jnp.arange(points, dtype=jnp.float32) / max(points - 1, 1))
    grid = jnp.maximum(grid, least)
    errors = lax.map(error, grid)
    t = grid[jnp.argmin(errors)]
    m, added, _ = reassembly(size, lost, t)
    return Search(m, added, t, errors)


def losses(x: Array, w: Array) -> Array:
    """What merging an even and an odd channel costs, |x_i - x_j|^2 |w_i - w_j|^2 / 4, `[ceil(K/2), floor(K/2)]`.

    For tokens `x [S, K]` and weights `w [K, N]`: the squared error that the pair alone makes in the output.

    >>> losses(jnp.array([[1.0, 3.0]]), jnp.array([[1.0], [2.0]]))
    Array([[1.]], dtype=float32)
    """
    return _apart(x.T) * _apart(w) / 4


def reassembly(size: Array, lost: Array, t: Array) -> tuple[Reassemble, Array, Array]:
    """The reassembly of channels of these sizes `[K]` under a threshold, how many it adds, and whether it can.

    `lost` as `losses` gives it. It cannot where fewer channels are left to be merged than were added.
    """
    k = size.size
    copies = jnp.maximum(jnp.ceil(size / t), 1).astype(jnp.int32)
    added = jnp.sum(copies) - k
    whole = copies == 1
    lost = jnp.where(whole[0::2, None] & whole[None, 1::2], lost, jnp.inf)
    partner, cost = 2 * jnp.argmin(lost, axis=1) + 1, jnp.min(lost, axis=1)
    rank = jnp.argsort(jnp.argsort(cost, stable=True), stable=True)
    merged = rank < added
    channel = jnp.arange(k)
    taken = channel.at[0::2].set(jnp.where(merged, partner, channel[0::2]))
    outputs = copies.at[0::2].set(jnp.where(merged, 0, copies[0::2]))
    given = jnp.repeat(channel, outputs, total_repeat_length=k)
    possible = jnp.sum(jnp.isfinite(cost)) >= added
    return Reassemble(taken.astype(narrowest(k)), given.astype(narrowest(k))), added, possible


def reassembled(m: Reassemble, w: Array) -> Array:
    """The rows of `w [K, N]` as they stand behind m: the sum of a group's rows, for each of its outputs."""
    sums = jax.ops.segment_sum(w, m.taken.astype(jnp.int32), max(m.taken.size, m.given.size))
    return sums[m.given.astype(jnp.int32)]


def _apart(rows: Array) -> Array:
    """Squared distances of the even from the odd rows."""
    even, odd = rows[0::2].astype(jnp.float32), rows[1::2].astype(jnp.float32)
    both = jnp.matmul(even, odd.T, precision="highest")
    return jnp.maximum(jnp.sum(even * even, axis=1)[:, None] + jnp.sum(odd * odd, axis=1)[None] - 2 * both, 0)


def _smallest(size: Array, most: Array, budget: int) -> Array:
    """The smallest threshold up to `most` that adds at most `budget` channels."""

    def halve(_: int, ends: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = ends
        middle = (low + high) / 2
        fits = jnp.sum(jnp.maximum(jnp.ceil(size / middle), 1)) - size.size <= budget
        return jnp.where(fits, low, middle), jnp.where(fits, middle, high)

    return lax.fori_loop(0, HALVINGS, halve, (jnp.zeros_like(most), most))[1]
