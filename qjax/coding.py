"""Values to codes and back on a given grid: the elementwise arithmetic, and whole arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

import jax.numpy as jnp
from jax import Array

from qjax import blocks
from qjax.formats import rules
from qjax.qarray import Grid, Meta, QArray
from qjax.rounding.values import Values

Steps = tuple[Array, Array | None]
"""Scale and offset (or None) as float32."""


class Rounding(Protocol):
    """Chooses codes for values in units of the scale; a pytree, so that it may hold a key."""

    def __call__(self, element: Values, x: Array, table: Array | None) -> Array: ...


class _Integers:
    """Every integer, its own code: what a value is rounded to before a zero point moves it."""

    def encode(self, x: Array, table: Array | None = None) -> Array:
        return jnp.round(x)

    def neighbours(self, x: Array, table: Array | None = None) -> tuple[Array, Array]:
        return jnp.floor(x), jnp.ceil(x)


def encode_with(
    meta: Meta,
    x: Array,
    scale: Array,
    offset: Array | None,
    table: Array | None = None,
    rounding: Rounding | None = None,
) -> Array:
    """Codes of float32 `x` elementwise; the caller has made the shapes broadcast. The inner loop of every solver.

    Zero point: round(x/scale) + z, saturated; minimum: the element's code of (x - m)/scale; else of x/scale.
    """
    e = meta.element
    if meta.offset == "zero_point":
        z, y = _given(meta, offset), rules.quotient(x, scale)
        y = jnp.where(jnp.isnan(y), jnp.float32(0), y)
        # Rounded before the zero point moves it: ties go to even whatever the zero point is.
        return e.encode((jnp.round(y) if rounding is None else rounding(_Integers(), y, None)) + z)
    y = rules.quotient(x if meta.offset is None else x - _given(meta, offset), scale)
    return e.encode(y, table) if rounding is None else rounding(e, y, table)


def decode_with(meta: Meta, codes: Array, scale: Array, offset: Array | None, table: Array | None = None) -> Array:
    """Values of `codes` elementwise as float32: scale*(q - z), scale*q + m or scale*q."""
    value = meta.element.decode(codes, table)
    if meta.offset is None:
        return value * scale
    offset = _given(meta, offset)
    return (value - offset) * scale if meta.offset == "zero_point" else value * scale + offset


def steps(grid: Grid | QArray) -> Steps:
    """Scale and offset (or None) as float32 [batch..., blocks of each core axis], nested levels multiplied out."""
    scale = functools.reduce(jnp.multiply, map(_value, grid.scales))
    return scale, None if grid.offset is None else _value(grid.offset)


def encode(grid: Grid, w: Array, rounding: Rounding | None = None) -> QArray:
    """`w` [batch..., core...] on a fitted grid: codes relative to its stored scales, padded as the grid says."""
    return _on_grid(grid, w, lambda x, scale, offset: encode_with(grid.meta, x, scale, offset, grid.table, rounding))


def encode_scales(grid: Grid, scale: Array) -> QArray:
    """Positive `scale` on a fitted grid; none becomes zero, however far below its block's largest it lies."""
    smallest = grid.meta.element.levels()
    smallest = jnp.float32(smallest[smallest > 0][0])

    def code(x: Array, outer: Array, offset: Array | None) -> Array:
        if offset is None:
            x = jnp.maximum(x, smallest * outer)
        return encode_with(grid.meta, x, outer, offset, grid.table)

    return _on_grid(grid, scale, code)


def decode(q: QArray) -> Array:
    """The values of `q` in its logical shape as float32, whatever its logical dtype."""
    core = _core(q.codes, q.meta)
    scale, offset = steps(q)
    codes, _ = blocks.split(q.codes, q.meta.block)
    offset = None if offset is None else blocks.spread(offset, core, q.meta.block)
    x = decode_with(q.meta, codes, blocks.spread(scale, core, q.meta.block), offset, q.table)
    return blocks.unpad(x.reshape(q.codes.shape), q.meta.padding)


def padded(w: Array, meta: Meta) -> Array:
    """`w` with the padding of `meta`: zeros, or the last value where zeros would move the minimum."""
    return blocks.pad(w, meta.padding, "edge" if meta.offset == "minimum" else "constant")


def _on_grid(grid: Grid, w: Array, code: Callable[[Array, Array, Array | None], Array]) -> QArray:
    meta = grid.meta
    w = padded(w, meta)
    core = _core(w, meta)
    scale, offset = steps(grid)
    x, _ = blocks.split(w.astype(jnp.float32), meta.block)
    offset = None if offset is None else blocks.spread(offset, core, meta.block)
    codes = code(x, blocks.spread(scale, core, meta.block), offset)
    return QArray(codes.reshape(w.shape), grid.scales, grid.offset, grid.table, meta)


def _core(x: Array, meta: Meta) -> tuple[int, ...]:
    return x.shape[x.ndim - len(meta.block) :]


def _value(child: Array | QArray) -> Array:
    return decode(child) if isinstance(child, QArray) else rules.load(child)


def _given(meta: Meta, offset: Array | None) -> Array:
    if offset is None:
        raise ValueError(f"{meta.element.name} with offset {meta.offset!r} was given no offset")
    return offset
