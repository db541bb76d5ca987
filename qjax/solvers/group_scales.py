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
    """The grid as it will be stored, and its steps and offsets as float32 rows `[groups, N]`, ready for the sweep."""

    grid: Grid
    step: Array
    offset: Array | None


def original(w: Array, fmt: Format, range: Range | None) -> Scales:
    """Scales of all groups from `w [K, N]`."""
    return _expanded(fit(w, fmt, axis=-2, range=range), w.shape[1])


def size(scales: Scales, rows: int) -> int:
    """Rows per group."""
    block = scales.grid.meta.block[-2]
    return rows if block == FULL else block


def refit(scales: Scales, w: Array, where: Array, fmt: Format, range: Range | None) -> Scales:
    """The groups marked in `where [groups]` get the scales of `w [K, N]`."""
    new = fit(w, fmt, axis=-2, range=range, outer=outer_steps(scales.grid))
    grid = _merge(scales.grid, new, lambda old, new: jnp.where(where[:, None], new, old))
    return _expanded(grid, w.shape[1])


def refit_one(scales: Scales, w: Array, number: Array, fmt: Format, range: Range | None) -> Scales:
    """Group `number` gets the scales of `w [group, N]`, its own rows."""
    outer = outer_steps(scales.grid)
    own = jax.tree.map(lambda x: lax.dynamic_slice_in_dim(x, number, 1, -2), outer)
    new = fit(w, fmt, axis=-2, range=range, outer=own)
    grid = _merge(scales.grid, new, lambda old, new: lax.dynamic_update_slice_in_dim(old, new, number, -2))
    return _expanded(grid, w.shape[1])


def _merge(old: Grid, new: Grid, put: Callable[[Array, Array], Array]) -> Grid:
    """The scales and offsets of `old` with those of `new` put in; a quantized scale keeps its outer level."""

    def child(old: Array | QArray, new: Array | QArray) -> Array | QArray:
        if isinstance(old, QArray):
            assert isinstance(new, QArray)
            return dataclasses.replace(old, codes=put(old.codes, new.codes))
        assert isinstance(new, Array)
        return put(old, new)

    scales = tuple(child(*pair) for pair in zip(old.scales, new.scales, strict=True))
    offset = None if old.offset is None or new.offset is None else child(old.offset, new.offset)
    return dataclasses.replace(old, scales=scales, offset=offset)


def _expanded(grid: Grid, columns: int) -> Scales:
    step, offset = steps(grid)

    def widen(x: Array) -> Array:
        """One value a column: a block may span several columns, or all of them."""
        return jnp.repeat(x, -(-columns // x.shape[-1]), axis=-1)[:, :columns]

    return Scales(grid, widen(step), None if offset is None else widen(offset))
