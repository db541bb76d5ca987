"""Scalar k-means: a table fitted to the values themselves, plain or weighted (catalogue J1)."""

from __future__ import annotations

from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from qjax.formats.format import Format
from qjax.formats.table import place


@dataclass(frozen=True)
class kmeans:
    """Lloyd's iterations from runs cut one by one (`divided`), in each block: the `levels` of a `Format`.

    Every iteration assigns each value to its nearest level and moves each level to the weighted mean of its values, so
    that sum weight*(x - level)^2 never rises; a level without values stays where it is. Weights that are the diagonal
    of a Hessian make it the sensitivity-weighted k-means of SqueezeLLM (Kim et al., 2024, arXiv:2306.07629, eq. 4).

    >>> from qjax.formats import Format, Table
    >>> three = Format(Table("three", (-1.0, 0.0, 1.0)), scale=None, levels=kmeans())
    >>> kmeans()(jnp.array([0.0, 0.1, 5.0, 5.1, -3.0, -3.2]), (-1,), three).tolist()
    [[-3.1, 0.05, 5.05]]
    """

    iterations: int = 25

    def __post_init__(self) -> None:
        if self.iterations < 0:
            raise ValueError(f"kmeans needs iterations >= 0, got {self.iterations}")

    def __call__(self, x: Array, axes: tuple[int, ...], fmt: Format, weights: Array | None = None) -> Array:
        rows, share, unit = in_rows(x, axes, weights)
        count = len(fmt.element.levels())
        levels = lloyd(rows, share, divided(rows, share, count), self.iterations) * unit
        return levels.reshape(*(1 if a - x.ndim in axes else n for a, n in enumerate(x.shape)), count)


def in_rows(x: Array, axes: tuple[int, ...], weights: Array | None) -> tuple[Array, Array, Array]:
    """Blocked values as ascending rows [blocks, n] within [-1, 1], their weights, and each row's unit [blocks, 1].

    Infinities count as the largest float32; a row with a NaN is NaN.
    """
    last = tuple(range(-len(axes), 0))
    n = int(np.prod([x.shape[a] for a in axes]))
    rows = jnp.moveaxis(x, axes, last).reshape(-1, n)
    weights = jnp.ones_like(x) if weights is None else jnp.broadcast_to(weights, x.shape)
    share = jnp.moveaxis(weights, axes, last).reshape(-1, n)
    top = jnp.float32(np.finfo(np.float32).max)
    rows = jnp.clip(rows, -top, top)
    unit = jnp.max(jnp.abs(rows), axis=-1, keepdims=True)
    unit = jnp.where(unit == 0, jnp.float32(1), unit)
    order = jnp.argsort(rows, axis=-1)
    return jnp.take_along_axis(rows, order, -1) / unit, jnp.take_along_axis(share, order, -1), unit


def divided(rows: Array, weights: Array, count: int) -> Array:
    """The means of `count` runs of ascending `rows` [blocks, n], [blocks, count]: cut where it helps most, one by one.

    Quantiles would be simpler, but where a few values weigh most (Hessians) they put all levels there.
    """
    n = rows.shape[-1]
    index = jnp.arange(n + 1, dtype=jnp.int32)[None]
    mass, sums = (jnp.pad(jnp.cumsum(part, axis=-1), ((0, 0), (1, 0))) for part in (weights, weights * rows))

    def run(first: Array, last: Array) -> tuple[Array, Array]:
        m, s = (jnp.take_along_axis(p, last, -1) - jnp.take_along_axis(p, first, -1) for p in (mass, sums))
        return s, jnp.where(m > 0, m, jnp.float32(1))

    def saved(first: Array, last: Array) -> Array:
        s, m = run(first, last)
        return s * s / m

    def cut(_: Array, cuts: Array) -> Array:
        left = lax.cummax(jnp.where(cuts, index, 0), axis=1)
        right = lax.cummin(jnp.where(cuts, index, n), axis=1, reverse=True)
        here = jnp.broadcast_to(index, left.shape)
        gain = jnp.where(cuts, -jnp.inf, saved(left, here) + saved(here, right) - saved(left, right))
        return cuts | (index == jnp.argmax(gain, axis=-1, keepdims=True).astype(jnp.int32))

    ends = jnp.broadcast_to((index == 0) | (index == n), mass.shape)
    cuts = lax.fori_loop(0, min(count, n) - 1, cut, ends)
    edges = jnp.sort(jnp.where(cuts, index, n), axis=-1)
    edges = jnp.pad(edges, ((0, 0), (0, max(0, count - n))), constant_values=n)
    first, last = edges[:, :count], edges[:, 1 : count + 1]
    s, m = run(first, last)
    inside = jnp.take_along_axis(rows, jnp.minimum(first, n - 1), axis=-1)
    # A run of no weight (or no values) takes its first value, so that levels ascend.
    empty = jnp.take_along_axis(mass, last, -1) <= jnp.take_along_axis(mass, first, -1)
    return jnp.where(empty, inside, s / m)


def lloyd(rows: Array, weights: Array, levels: Array, iterations: int) -> Array:
    """`iterations` of Lloyd's algorithm on weighted rows [blocks, n], from ascending levels [blocks, count]."""
    number = jnp.arange(levels.shape[-1], dtype=jnp.int32)[None, None]

    def iteration(_: Array, levels: Array) -> Array:
        cuts = levels[:, None, :-1] * jnp.float32(0.5) + levels[:, None, 1:] * jnp.float32(0.5)
        mine = jnp.where(place(cuts, rows)[..., None] == number, weights[..., None], jnp.float32(0))
        mass, sums = jnp.sum(mine, axis=1), jnp.sum(mine * rows[..., None], axis=1)
        return jnp.where(mass > 0, sums / jnp.where(mass > 0, mass, jnp.float32(1)), levels)

    return lax.fori_loop(0, iterations, iteration, levels)
