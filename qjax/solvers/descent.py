"""Descent on ‖X(W - Ŵ)‖² inside a format: over the codes row by row, and over the scales group by group.

Both passes keep Ŵ and the residual R = H(W - Ŵ), H = XᵀX, and take the exact minimum over what they move, so neither
raises the objective. Every coordinate-wise and alternating method is made of them: QuantEase, GPFQ, decoupleQ, the
greedy passes of QuIP.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import Array, lax

from qjax.formats.format import Format
from qjax.quantization import decode_with, encode
from qjax.solvers import group_scales
from qjax.solvers.group_scales import Scales

RoundRow = Callable[[Array, Array, Array], Array]
"""(row [N], its group, its position) -> the row on the grid."""


class Point(NamedTuple):
    """Where a descent stands: `values [K, N]` = Ŵ and `residual [K, N]` = H(W - Ŵ), float32."""

    values: Array
    residual: Array


def at(w: Array, values: Array, gram: Array) -> Point:
    """The point at `values`, its residual computed afresh."""
    return Point(values, matmul(gram, w - values))


def rows(point: Point, gram: Array, size: int, round_row: RoundRow, *, block: int = 128) -> Point:
    """Each row in turn to `round_row` of the value that minimizes the objective given all other rows.

    `size` rows make a group of scales. The residual is repaired inside blocks of rows, and beyond them by one matrix
    product a block. Rows that no input reaches stay.
    """
    total = point.values.shape[0]
    block = min(block, total)
    fill = -total % block
    gram = jnp.pad(gram, ((0, fill), (0, fill)))
    padded = Point(*(jnp.pad(part, ((0, fill), (0, 0))) for part in point))

    def move_block(index: Array, point: Point) -> Point:
        start = index * block
        spread = lax.dynamic_slice_in_dim(gram, start, block)
        inner = lax.dynamic_slice_in_dim(spread, start, block, axis=1)
        old, own = (lax.dynamic_slice_in_dim(part, start, block) for part in point)

        def move_row(i: Array, state: tuple[Array, Array]) -> tuple[Array, Array]:
            new, moved = state
            weight = inner[i, i]
            live = weight > 0
            best = old[i] + (own[i] - matmul(inner[i], moved)) / jnp.where(live, weight, 1)
            row = jnp.where(live, round_row(best, (start + i) // size, start + i), old[i])
            return new.at[i].set(row), moved.at[i].set(row - old[i])

        new, moved = lax.fori_loop(jnp.int32(0), jnp.int32(block), move_row, (old, jnp.zeros_like(old)))
        values = lax.dynamic_update_slice_in_dim(point.values, new, start, 0)
        return Point(values, point.residual - matmul(spread.T, moved))

    moved = lax.fori_loop(jnp.int32(0), jnp.int32((total + fill) // block), move_block, padded)
    return Point(*(part[:total] for part in moved))


def scales(point: Point, gram: Array, given: Scales, fmt: Format) -> tuple[Point, Scales]:
    """Scale and offset of each group in turn to their least squares for fixed codes, as far as that helps once stored.

    A group whose stored scales would raise the objective keeps its own. Levels above the group and tables of its own
    stay; formats without scales have nothing to move.
    """
    if fmt.scale is None:
        return point, given
    total, columns = point.values.shape
    size = group_scales.size(given.grid, total)
    count = -(-total // size)
    meta = given.grid.meta
    fill = count * size - total
    gram = jnp.pad(gram, ((0, fill), (0, fill)))
    codes = encode(given.grid, point.values).codes
    padded = Point(*(jnp.pad(part, ((0, fill), (0, 0))) for part in point))
    across, plain = group_scales.pool(given, columns), dataclasses.replace(fmt, levels=None)

    def move(number: Array, state: tuple[Point, Scales]) -> tuple[Point, Scales]:
        point, old = state
        start = number * size
        spread = lax.dynamic_slice_in_dim(gram, start, size)
        inner = lax.dynamic_slice_in_dim(spread, start, size, axis=1)
        own_codes = lax.dynamic_slice_in_dim(codes, start, size)
        values, residual = (lax.dynamic_slice_in_dim(part, start, size) for part in point)
        _, _, table = group_scales.of(old, number)
        table = None if table is None else table[None]
        # Ŵ = scale * unit + shift: the normal equations of the two, summed over the columns that share them.
        unit = meta.element.decode(own_codes, table)
        wanted = residual + matmul(inner, values)
        bent = matmul(inner, unit)
        uu, uw = across(jnp.sum(unit * bent, axis=0)), across(jnp.sum(unit * wanted, axis=0))
        if meta.offset is None:
            step, shift = uw / jnp.where(uu > 0, uu, 1), None
        else:
            ones = jnp.sum(inner, axis=0)[:, None]
            one = across(jnp.broadcast_to(jnp.sum(inner), (columns,)))
            u1, w1 = across(jnp.sum(unit * ones, axis=0)), across(jnp.sum(wanted, axis=0))
            determinant = uu * one - u1 * u1
            safe = jnp.where(determinant > 0, determinant, 1)
            step, shift = (uw * one - u1 * w1) / safe, (uu * w1 - u1 * uw) / safe
        step, shift = (None if x is None else group_scales.one_a_tile(given, x) for x in (step, shift))
        assert step is not None
        new = group_scales.refit_one(old, values, number, plain, group_scales.asking(fmt, step, shift))
        scale, offset = (None if part is None else part[None] for part in group_scales.of(new, number)[:2])
        turned = decode_with(meta, own_codes, scale, offset, table)
        moved = turned - values
        change = across(jnp.sum(moved * (matmul(inner, moved) - 2 * residual), axis=0))
        better = change < 0
        moved = jnp.where(better[None], moved, 0)
        values = lax.dynamic_update_slice_in_dim(point.values, values + moved, start, 0)
        point = Point(values, point.residual - matmul(spread.T, moved))
        return point, group_scales.choose(better, new, old)

    moved, new = lax.fori_loop(jnp.int32(0), jnp.int32(count), move, (padded, given))
    return Point(*(part[:total] for part in moved)), new


def matmul(a: Array, b: Array) -> Array:
    """A product at full float32 precision on every platform."""
    return jnp.matmul(a, b, precision=lax.Precision.HIGHEST)
