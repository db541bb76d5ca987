"""When the scales of a group are fixed during a sweep over rows: before it, at a block's start, or at the group's own.

Implementations of GPTQ differ here and nowhere else, and by it two of them agree on a third of the codes only. A group
is *opened* by the first of its rows that is processed:

- "static": all scales come from the original weights, before the sweep (llm-compressor; act-order needs it elsewhere);
- "stale": from the weights at the start of the block of rows in which the group is opened (gptq.py, GPTQModel);
- "fresh": from the weights at that very row, with every earlier error repaired.

Levels above the group (NVFP4's tensor scale, the second level of double quantization) stay those of the original.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax

from qjax.formats.format import POWER_OF_TWO_RULES, Format
from qjax.qarray import FULL, Grid, QArray
from qjax.quantization import decode_with, encode_with, fit, outer_steps, steps
from qjax.ranges import Range
from qjax.ranges.range import Project

Groups = Literal["static", "stale", "fresh"]
GROUPS: tuple[Groups, ...] = ("static", "stale", "fresh")


class Scales(NamedTuple):
    """The grid as it will be stored, and its parts as float32 rows, ready for the sweep; None where it lacks one.

    `step`, `offset`: `[groups, N]`; `table`: `[groups, N, levels]`; 1 for N where all columns share them.
    """

    grid: Grid
    step: Array | None
    offset: Array | None
    table: Array | None


def original(w: Array, fmt: Format, range: Range | None) -> Scales:
    """Scales of all groups from `w [K, N]`."""
    return of_grid(fit(w, fmt, axis=-2, range=range), *w.shape)


def of_grid(grid: Grid, rows: int, columns: int) -> Scales:
    """Scales of all groups from a grid of a matrix `[rows, columns]` that is fitted already."""
    return _expanded(grid, -(-rows // size(grid, rows)), columns)


def size(grid: Grid, rows: int) -> int:
    """Rows per group."""
    block = grid.meta.block[-2]
    return rows if block == FULL else block


def count(scales: Scales) -> int:
    """Number of groups."""
    return next((part.shape[0] for part in scales[1:] if part is not None), 1)


def of(scales: Scales, number: Array) -> tuple[Array | None, Array | None, Array | None]:
    """Scale, offset and table of a group, against one row `[N]`."""
    step, offset, table = (None if part is None else part[number] for part in scales[1:])
    return step, offset, table


def of_rows(scales: Scales, rows: int) -> tuple[Array | None, Array | None, Array | None]:
    """Scale, offset and table of every row, against a matrix `[rows, N]`."""
    group = jnp.arange(rows) // size(scales.grid, rows)
    step, offset, table = (None if part is None else part[group] for part in scales[1:])
    return step, offset, table


def nearest(row: Array, scales: Scales, number: Array) -> Array:
    """The representable values of a group nearest to a row `[N]`, in the row's dtype."""
    meta, parts = scales.grid.meta, of(scales, number)
    return decode_with(meta, encode_with(meta, row.astype(jnp.float32), *parts), *parts).astype(row.dtype)


def refit(scales: Scales, w: Array, where: Array, fmt: Format, range: Range | None) -> Scales:
    """The groups marked in `where [groups]` get the scales of `w [K, N]`."""
    new = fit(w, fmt, axis=-2, range=range, outer=outer_steps(scales.grid))
    grid = _merge(scales.grid, new, lambda old, new, axis: jnp.where(_along(where, new.ndim, axis), new, old))
    return _expanded(grid, count(scales), w.shape[1])


def refit_one(scales: Scales, w: Array, number: Array, fmt: Format, range: Range | None) -> Scales:
    """Group `number` gets the scales of `w [group, N]`, its own rows."""
    outer = outer_steps(scales.grid)
    own = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, number, 1, -2), outer)
    new = fit(w, fmt, axis=-2, range=range, outer=own)
    grid = _merge(scales.grid, new, lambda old, new, axis: lax.dynamic_update_slice_in_dim(old, new, number, axis))
    return _expanded(grid, count(scales), w.shape[1])


def asking(fmt: Format, step: Array, shift: Array | None) -> Range:
    """A range whose scale by the rule of `fmt` is `step`, and whose offset makes 0 decode to `shift`; any shape.

    What a solver wants stored: `fit` with it rounds both to their storage, under the outer level. Steps are made
    positive, except by the rule "signed".
    """
    e = fmt.element
    size = jnp.maximum(jnp.abs(step), jnp.finfo(jnp.float32).tiny)
    if fmt.rule == "minmax":
        assert shift is not None
        bounds = shift, shift + size * (e.max - e.min)
    elif fmt.rule == "signed":
        edge = step * e.min
        bounds = jnp.minimum(edge, 0), jnp.maximum(edge, 0)
    elif fmt.rule in POWER_OF_TWO_RULES:
        power = jnp.exp2(jnp.round(jnp.log2(size)))
        top = power * (e.max if fmt.rule == "rceil" else 2.0**e.top_exponent)
        bounds = -top, top
    else:
        top = size * ((2**e.bits - 1) / 2 if fmt.rule == "half" else e.max)
        bounds = -top, top

    def asked(
        x: Array, axes: tuple[int, ...], fmt: Format, project: Project, weights: Array | None = None
    ) -> tuple[Array, Array]:
        return bounds

    return asked


def pool(scales: Scales, columns: int) -> Callable[[Array], Array]:
    """The function that sums one number a column `[N]` over the columns that share a scale, one for each again."""
    across = scales.grid.meta.block[-1]
    across = columns if across == FULL else across
    if across == 1:
        return lambda x: x
    tiles = -(-columns // across)

    def summed(x: Array) -> Array:
        x = jnp.pad(x, (0, tiles * across - columns)).reshape(tiles, across)
        return jnp.repeat(jnp.sum(x, axis=1), across)[:columns]

    return summed


def choose(where: Array, new: Scales, old: Scales) -> Scales:
    """The scales and offsets of `new` in the columns `where [N]`, equal for columns that share a scale."""
    return _expanded(choose_blocks(one_a_tile(old, where)[None], new.grid, old.grid), count(old), len(where))


def one_a_tile(scales: Scales, x: Array) -> Array:
    """Of one number a column `[N]`, equal where columns share a scale, one for each tile."""
    across = scales.grid.meta.block[-1]
    return x[:: len(x) if across == FULL else across]


def choose_blocks(where: Array, new: Grid, old: Grid) -> Grid:
    """The scales and offsets of `new` in the blocks `where [groups (or 1), tiles of columns]`; its tables stay old."""
    chosen = _merge(old, new, lambda old, new, axis: jnp.where(where, new, old) if axis == -2 else old)
    return dataclasses.replace(chosen, table=old.table)


def _along(where: Array, rank: int, axis: int) -> Array:
    """`where [groups]` along `axis` of an array of so many axes."""
    return where.reshape([-1 if a == rank + axis else 1 for a in range(rank)])


def _merge(old: Grid, new: Grid, put: Callable[[Array, Array, int], Array]) -> Grid:
    """The parts of `old`, those of `new` put in along the axis of groups; a quantized scale keeps its outer level."""

    def child(old: Array | QArray, new: Array | QArray) -> Array | QArray:
        if isinstance(old, QArray):
            assert isinstance(new, QArray)
            return dataclasses.replace(old, codes=put(old.codes, new.codes, -2))
        assert isinstance(new, Array)
        return put(old, new, -2)

    scales = tuple(child(*pair) for pair in zip(old.scales, new.scales, strict=True))
    offset = None if old.offset is None or new.offset is None else child(old.offset, new.offset)
    table = None if old.table is None or new.table is None else put(old.table, new.table, -3)
    return dataclasses.replace(old, scales=scales, offset=offset, table=table)


def _expanded(grid: Grid, groups: int, columns: int) -> Scales:
    across = grid.meta.block[-1]

    def widen(x: Array | None) -> Array | None:
        """One value a group, and one a column unless all columns share it; a block may span several columns."""
        if x is None:
            return None
        x = jnp.broadcast_to(x, (groups, *x.shape[1:]))
        return x if x.shape[1] == 1 else jnp.repeat(x, across, axis=1)[:, :columns]

    return Scales(grid, *map(widen, (*steps(grid), grid.table)))
