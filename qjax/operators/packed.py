"""Packed(codes, grid; layout): a QArray rearranged for one kernel."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from qjax import dispatch
from qjax.nodes import node
from qjax.operators import block_scaled_codes, grouped, narrow_codes, nibble_words, wgmma_words
from qjax.operators.implementations import Implementation, Layout, choose
from qjax.operators.operator import Operator, product, ragged_product
from qjax.qarray import Grid, QArray, take_grid
from qjax.quantization import dequantize


@node
@dataclass(frozen=True, eq=False)
class Packed(Operator):
    """The codes of a QArray [batch..., K, N] in the named, versioned `layout`; metadata unchanged.

    So are scales and offset, unless the layout arranges them too (`Layout.arrange`).
    Made by `qjax.prepare`, undone exactly by `qjax.unpack`.
    """

    codes: jax.Array  # three axes after those of the batch
    grid: Grid
    layout: str = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        K, N = LAYOUTS[self.layout].core(self.codes, self.grid)
        return (*self.codes.shape[:-3], K, N)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.grid.meta.dtype)

    def matmul(self, x: jax.Array, *, dtype: Any = None, implementation: str | None = None) -> jax.Array:
        tokens = math.prod(x.shape[len(self.batch_shape) : -1])
        chosen = choose(
            LAYOUTS[self.layout].implementations, self, tokens, jax.default_backend(), implementation, x.dtype
        )
        return chosen.run(x, self, dtype)

    def ragged_dot(
        self, x: jax.Array, sizes: jax.Array, *, dtype: Any = None, implementation: str | None = None
    ) -> jax.Array:
        candidates = (*LAYOUTS[self.layout].ragged, RAGGED)
        chosen = choose(candidates, self, x.shape[0], jax.default_backend(), implementation, x.dtype)
        return chosen.run(x, sizes, self, dtype)

    def affine(self) -> tuple[jax.Array, jax.Array | None]:
        return dequantize(unpack(self)), None

    def rows(self, ids: jax.Array) -> jax.Array:
        return dispatch.taken_rows(take(self, ids.reshape(-1)), ids, self.shape[-1])

    def transpose(self) -> QArray:
        return dispatch.transpose(unpack(self))

    def children(self) -> dict[str, Any]:
        grid = self.grid
        found = {"codes": self.codes} | {f"grid/scales/{i}": s for i, s in enumerate(grid.scales)}
        return found | {f"grid/{n}": v for n in ("offset", "table") if (v := getattr(grid, n)) is not None}


def pack(q: QArray, layout: str) -> Packed:
    """q in the given layout; ValueError says why it cannot be."""
    if layout not in LAYOUTS:
        raise ValueError(f"unknown layout {layout!r}: know {sorted(LAYOUTS)}")
    why = LAYOUTS[layout].refuse(q)
    if why is not None:
        raise ValueError(f"layout {layout!r} does not fit QArray {q.shape}: {why}")
    codes, grid = _pack(q, layout)
    return Packed(codes, grid, layout)


def unpack(packed: Packed) -> QArray:
    """The QArray it was made from, bit for bit."""
    codes, grid = _unpack(packed.codes, packed.grid, packed.layout)
    return QArray(codes, grid.scales, grid.offset, grid.table, grid.meta)


def take(packed: Packed, ids: jax.Array) -> QArray:
    """The outputs ids [m] of [batch..., K, N], without unpacking the others' codes."""
    layout = LAYOUTS[packed.layout]
    codes = layout.unpack(layout.columns(packed.codes, ids), packed.grid)[..., : ids.size]
    grid = take_grid(layout.restore(packed.grid), ids, -1)
    return QArray(codes, grid.scales, grid.offset, grid.table, grid.meta)


@functools.partial(jax.jit, static_argnames="layout")
def _pack(q: QArray, layout: str) -> tuple[jax.Array, Grid]:
    return LAYOUTS[layout].pack(q), LAYOUTS[layout].arrange(q.grid)


@functools.partial(jax.jit, static_argnames="layout")
def _unpack(codes: jax.Array, grid: Grid, layout: str) -> tuple[jax.Array, Grid]:
    return LAYOUTS[layout].unpack(codes, grid), LAYOUTS[layout].restore(grid)


WHOLE = Implementation(
    "dequantize",
    lambda *_: None,
    lambda *_: True,
    lambda x, packed, dtype: product(x, dequantize(unpack(packed)), dtype),
)

RAGGED = WHOLE._replace(run=lambda x, sizes, packed, dtype: ragged_product(x, dequantize(unpack(packed)), sizes, dtype))

# In the order in which `prepare` tries those of one target.
LAYOUTS: dict[str, Layout] = {
    name: layout._replace(implementations=(*own, WHOLE))
    for name, layout, own in (
        (nibble_words.NAME, nibble_words.LAYOUT, nibble_words.LAYOUT.implementations),
        (grouped.NIBBLES, grouped.LAYOUT, (nibble_words.ELSEWHERE, *grouped.LAYOUT.implementations)),
        *((name, layout, layout.implementations) for name, layout in narrow_codes.LAYOUTS.items()),
        *((name, layout, layout.implementations) for name, layout in wgmma_words.LAYOUTS.items()),
        (block_scaled_codes.NAME, block_scaled_codes.LAYOUT, ()),
    )
}
