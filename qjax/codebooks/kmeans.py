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
    """Lloyd's iterations from the weighted quantiles of each block: the `levels` of a `Format`.

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
        levels = lloyd(rows, share, quantiles(rows, share, count), self.iterations) * unit
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


def quantiles(rows: Array, weights: Array, count: int) -> Array:
    """The (i + 1/2)/count weighted quantiles of ascending `rows` [blocks, n]: [blocks, count]."""
    total = jnp.cumsum(weights, axis=-1)
    at = ((jnp.arange(count, dtype=jnp.float32) + 0.5) / count)[None] * total[:, -1:]
    below = jnp.sum(total[:, :, None] < at[:, None, :], axis=1)
    return jnp.take_along_axis(rows, jnp.minimum(below, rows.shape[-1] - 1), axis=-1)


def lloyd(rows: Array, weights: Array, levels: Array, iterations: int) -> Array:
    """`iterations` of Lloyd's algorithm on weighted rows [blocks, n], from ascending levels [blocks, count]."""
    number = jnp.arange(levels.shape[-1], dtype=jnp.int32)[None, None]

    def iteration(_: Array, levels: Array) -> Array:
        cuts = levels[:, None, :-1] * jnp.float32(0.5) + levels[:, None, 1:] * jnp.float32(0.5)
        mine = jnp.where(place(cuts, rows)[..., None] == number, weights[..., None], jnp.float32(0))
        mass, sums = jnp.sum(mine, axis=1), jnp.sum(mine * rows[..., None], axis=1)
        return jnp.where(mass > 0, sums / jnp.where(mass > 0, mass, jnp.float32(1)), levels)

    return lax.fori_loop(0, iterations, iteration, levels)
