"""The quantized array: a plain pytree of codes, scales, offset and table with static metadata."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from qjax.formats.elements import Element
from qjax.formats.format import FULL
from qjax.nodes import node

__all__ = ["FULL", "Grid", "Meta", "QArray", "index", "take", "transpose"]


@dataclass(frozen=True)
class Meta:
    """What is static about a quantized array: hashable, canonical, equal for equal layouts.

    element : representable values; block : block size per core axis (an int or FULL), counted from the end; offset :
    None, "zero_point" or "minimum"; padding : elements added at the end of each core axis; dtype : logical dtype;
    length : elements per code (1; vector codebooks have more).
    """

    element: Element
    block: tuple[int, ...]
    offset: str | None = None
    padding: tuple[int, ...] = ()
    dtype: str = "float32"
    length: int = 1

    def __post_init__(self) -> None:
        if not self.padding:
            object.__setattr__(self, "padding", (0,) * len(self.block))
        if len(self.padding) != len(self.block):
            raise ValueError(f"padding {self.padding} and block {self.block} must name the same core axes")
        if self.length != 1:
            raise ValueError(f"codes of {self.length} elements (vector codebooks) have no decoder yet")


@node
@dataclass(frozen=True)
class QArray:
    """Codes on a grid of block scales; decoded by `qjax.dequantize`, never implicitly.

    codes  : integers [batch..., core...] in bytes, padding included.
    scales : factors, multiplied together; each an array or itself a QArray, [batch..., blocks of each core axis];
             () for a direct cast, whose codes are the values themselves.
    offset : zero point or minimum per block in the same shape, or None.
    table  : the element's values if they are not its own, [batch..., blocks of each core axis, levels], or None.
    meta   : static metadata (`Meta`).

    The axes before the core are batch. Every child keeps all axes, with size 1 where it is shared.
    """

    codes: Array
    scales: tuple[Array | QArray, ...]
    offset: Array | QArray | None
    table: Array | None
    meta: Meta = field(metadata={"static": True})

    @property
    def batch_shape(self) -> tuple[int, ...]:
        return tuple(self.codes.shape[: self.codes.ndim - len(self.meta.block)])

    @property
    def core_shape(self) -> tuple[int, ...]:
        """Sizes of the core axes without padding."""
        core = self.codes.shape[self.codes.ndim - len(self.meta.block) :]
        return tuple(n - p for n, p in zip(core, self.meta.padding, strict=True))

    @property
    def shape(self) -> tuple[int, ...]:
        """Logical shape: batch and core without padding."""
        return self.batch_shape + self.core_shape

    @property
    def ndim(self) -> int:
        return self.codes.ndim

    @property
    def size(self) -> int:
        return int(np.prod(self.shape))

    @property
    def dtype(self) -> np.dtype:
        """Logical dtype: what `dequantize` returns."""
        return jnp.dtype(self.meta.dtype)

    @property
    def grid(self) -> Grid:
        """Everything but the codes."""
        return Grid(self.scales, self.offset, self.table, self.meta)


@node
@dataclass(frozen=True)
class Grid:
    """The representable values of every block: a `QArray` without its codes."""

    scales: tuple[Array | QArray, ...]
    offset: Array | QArray | None
    table: Array | None
    meta: Meta = field(metadata={"static": True})


def transpose(q: QArray) -> QArray:
    """Swaps the last two core axes (exact: codes, scales and offset move together)."""
    if len(q.meta.block) < 2:
        raise ValueError(f"transpose needs two core axes, got block {q.meta.block}")

    def swap(t: tuple) -> tuple:
        return (*t[:-2], t[-1], t[-2])

    def child(c: Array | QArray) -> Array | QArray:
        return transpose(c) if isinstance(c, QArray) else jnp.swapaxes(c, -1, -2)

    meta = replace(q.meta, block=swap(q.meta.block), padding=swap(q.meta.padding))
    offset = None if q.offset is None else child(q.offset)
    table = None if q.table is None else jnp.swapaxes(q.table, -2, -3)
    return QArray(jnp.swapaxes(q.codes, -1, -2), tuple(map(child, q.scales)), offset, table, meta)


def index(q: QArray, i: int | Array) -> QArray:
    """Entry `i` (static or traced) of the leading batch axis; children shared along it give their only entry."""
    if not q.batch_shape:
        raise ValueError(f"no batch axis to index: shape {q.shape} is all core")
    return jax.tree.map(lambda a: lax.dynamic_index_in_dim(a, 0 if a.shape[0] == 1 else i, axis=0, keepdims=False), q)


def take(q: QArray, ids: Array, axis: int) -> QArray:
    """The entries `ids` [m] of core axis `axis` (negative), in that order; the values are exactly kept.

    Blocks longer than one along that axis are split: the result has block 1 there. Padding on it is dropped.
    """
    grid = take_grid(q.grid, ids, axis)
    return QArray(jnp.take(q.codes, ids, axis=axis), grid.scales, grid.offset, grid.table, grid.meta)


def take_grid(q: Grid, ids: Array, axis: int) -> Grid:
    """The grid of `take`: of the entries `ids` [m] of core axis `axis` (negative)."""
    core = len(q.meta.block)
    if not -core <= axis < 0:
        raise ValueError(f"axis must be a negative core axis, one of {tuple(range(-core, 0))}, got {axis}")
    block = q.meta.block[axis]

    at = ids if block == 1 else ids // block  # the block of each entry

    def child(c: Array | QArray) -> Array | QArray:
        if c.shape[axis] == 1:  # one block, or shared by all
            return c
        return take(c, at, axis) if isinstance(c, QArray) else jnp.take(c, at, axis=axis)

    new = list(q.meta.block), list(q.meta.padding)
    new[0][axis] = block if block in (1, FULL) else 1
    new[1][axis] = 0
    offset = None if q.offset is None else child(q.offset)
    table = q.table
    if table is not None and table.shape[axis - 1] > 1:
        table = jnp.take(table, at, axis=axis - 1)
    meta = replace(q.meta, block=tuple(new[0]), padding=tuple(new[1]))
    return Grid(tuple(map(child, q.scales)), offset, table, meta)
