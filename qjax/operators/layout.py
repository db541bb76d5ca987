"""A bare QArray of any storage layout brought to matrix form by reshapes and transposes alone."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import jax

from qjax.qarray import FULL, QArray


def as_matrix(q: QArray, in_axes: Sequence[int], out_axes: Sequence[int]) -> QArray | None:
    """Q as [batch..., K, N]: in_axes flatten (in order) to K, out_axes to N, the other axes are batch, in order.

    Exact, without decoding; None where blocks of the flattened axes would not be blocks of equal size (a block that
    spans neither a whole inner axis nor single entries of an outer one), or where padding would end up inside an axis.
    Storage axes may be negative.
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

    def flatten(leaf: jax.Array) -> jax.Array:
        leaf = leaf.transpose([*rest, *ins, *outs])
        sizes = leaf.shape[len(rest) :]
        return leaf.reshape(*leaf.shape[: len(rest)], math.prod(sizes[: len(ins)]), math.prod(sizes[len(ins) :]))

    def child(c: jax.Array | QArray) -> jax.Array | QArray | None:
        return as_matrix(c, ins, outs) if isinstance(c, QArray) else flatten(c)

    scales = [c for s in q.scales if (c := child(s)) is not None]
    offset = None if q.offset is None else child(q.offset)
    if len(scales) < len(q.scales) or (offset is None) != (q.offset is None):
        return None
    pads = tuple(
        padding[axes[0]] * math.prod(q.codes.shape[i] for i in axes[1:]) if axes else 0 for axes in (ins, outs)
    )
    meta = replace(q.meta, block=tuple(merged), padding=pads)
    return QArray(flatten(q.codes), tuple(scales), offset, q.table, meta)


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
