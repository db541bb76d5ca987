"""A bare QArray of any storage layout brought to matrix form by reshapes and transposes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import jax

from qjax.blocks import grid_shape
from qjax.qarray import FULL, QArray


def as_matrix(q: QArray, in_axes: Sequence[int], out_axes: Sequence[int]) -> QArray | None:
    """Q as [batch..., K, N]: in_axes flatten (in order) to K, out_axes to N, the other axes are batch, in order.

    Exact, without decoding; None where blocks of the flattened axes would not be blocks of equal size (a block that
    spans neither a whole inner axis nor single entries of an outer one), where padding would end up inside an axis, or
    where a scale, offset or table is shared along some of the flattened axes only. Storage axes may be negative.
    """
    rank = len(q.codes.shape)
    ins, outs = [i % rank for i in in_axes], [i % rank for i in out_axes]
    rest = [i for i in range(rank) if i not in (*ins, *outs)]
    batch = rank - len(q.meta.block)
    blocks = (1,) * batch + q.meta.block
    padding = (0,) * batch + q.meta.padding
    if any(blocks[i] not in (1, FULL) or padding[i] for i in rest):
        return None
    merged = [_merge([q.codes.shape[i] for i in axes], [blocks[i] for i in axes]) for axes in (ins, outs)]
    if None in merged or any(padding[i] for axes in (ins, outs) for i in axes[1:]):
        return None  # padding inside an axis
    counts = grid_shape(q.codes.shape, blocks)

    def flatten(leaf: jax.Array) -> jax.Array:
        levels = leaf.shape[rank:]
        leaf = leaf.transpose([*rest, *ins, *outs, *range(rank, leaf.ndim)])
        sizes = leaf.shape[len(rest) : rank]
        inner, outer = math.prod(sizes[: len(ins)]), math.prod(sizes[len(ins) :])
        return leaf.reshape(*leaf.shape[: len(rest)], inner, outer, *levels)

    def child(c: jax.Array | QArray) -> jax.Array | QArray | None:
        for axes in (ins, outs):
            own = [c.shape[i] for i in axes]
            if own != [counts[i] for i in axes] and any(n != 1 for n in own):
                return None
        return as_matrix(c, ins, outs) if isinstance(c, QArray) else flatten(c)

    parts = [*q.scales, *(p for p in (q.offset, q.table) if p is not None)]
    flat = [c for p in parts if (c := child(p)) is not None]
    if len(flat) < len(parts):
        return None
    table = flat.pop() if q.table is not None else None
    offset = flat.pop() if q.offset is not None else None
    assert not isinstance(table, QArray)
    pads = tuple(
        padding[axes[0]] * math.prod(q.codes.shape[i] for i in axes[1:]) if axes else 0 for axes in (ins, outs)
    )
    meta = replace(q.meta, block=tuple(merged), padding=pads)
    return QArray(flatten(q.codes), tuple(flat), offset, table, meta)


def _merge(sizes: Sequence[int], blocks: Sequence[int]) -> int | None:
    """The block of axes flattened together: whole inner axes, one cut axis, single entries outside; None otherwise."""
    if all(b in (FULL, n) for n, b in zip(sizes, blocks, strict=True)):
        return FULL if any(b == FULL for b in blocks) else math.prod(sizes)
    block, open_ = 1, True
    for n, b in zip(reversed(sizes), reversed(blocks), strict=True):
        if open_:
            block *= n if b == FULL else b
            open_ = b in (FULL, n)
        elif b != 1 and n != 1:
            return None
    return block
