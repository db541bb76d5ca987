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

from qjax.formats.format import Format
from qjax.qarray import FULL, Grid, QArray
from qjax.quantization import fit, outer_steps, steps
from qjax.ranges import Range

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
    grid = fit(w, fmt, axis=-2, range=range)
    return _expanded(grid, -(-w.shape[0] // size(grid, w.shape[0])), w.shape[1])


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
