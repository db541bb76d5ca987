"""Values to codes and back on a given grid: the elementwise arithmetic, and whole arrays."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Protocol

import jax
import jax.numpy as jnp
from jax import Array
from jax.typing import DTypeLike

from qjax import blocks
from qjax.formats import rules
from qjax.qarray import Grid, Meta, QArray
from qjax.rounding.values import Values

Steps = tuple[Array | None, Array | None]
"""Scale and offset as float32; None where there is none."""


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
    scale: Array | None,
    offset: Array | None,
    table: Array | None = None,
    rounding: Rounding | None = None,
) -> Array:
    """Codes of float32 `x` elementwise; the caller has made the shapes broadcast. The inner loop of every solver.

    Zero point: round(x/scale) + z, saturated, and round(x/scale + z) for a real z; minimum: the element's code of
    (x - m)/scale; else of x/scale, or of x itself without a scale. `table` [shape that broadcasts against x, levels]
    replaces the element's values.
    """
    e = meta.element
    if meta.offset == "zero_point":
        z, y = _given(meta, offset), _over(x, scale)
        # Rounded before the zero point moves it: ties go to even whatever the zero point is.
        y = (
            jnp.round(y)
            if rounding is None
            else rounding(_Integers(), jnp.where(jnp.isnan(y), jnp.float32(0), y), None)
        )
        return e.encode(jnp.where(jnp.isnan(y), jnp.float32(0), y) + z)
    y = _over(x - _given(meta, offset) if meta.offset == "minimum" else x, scale)
    y = y + _given(meta, offset) if meta.offset == "float_zero" else y
    return e.encode(y, table) if rounding is None else rounding(e, y, table)


def decode_with(
    meta: Meta, codes: Array, scale: Array | None, offset: Array | None, table: Array | None = None
) -> Array:
    """Values of `codes` elementwise as float32: scale*(q - z), scale*q + m, scale*q, or q without a scale."""
    value = meta.element.decode(codes, table)
    if meta.offset is None:
        return _times(value, scale)
    offset = _given(meta, offset)
    return _times(value, scale) + offset if meta.offset == "minimum" else _times(value - offset, scale)


def steps(grid: Grid | QArray) -> Steps:
    """Scale and offset (or None) as float32 [batch..., blocks of each core axis], nested levels multiplied out."""
    scale = _once(functools.reduce(jnp.multiply, map(_value, grid.scales))) if grid.scales else None
    return scale, None if grid.offset is None else _once(_value(grid.offset))


@jax.jit
def encode(grid: Grid, w: Array, rounding: Rounding | None = None) -> QArray:
    """`w` [batch..., core...] on a fitted grid: codes relative to its stored scales, padded as the grid says."""

    def code(x: Array, scale: Array | None, offset: Array | None, table: Array | None) -> Array:
        return encode_with(grid.meta, x, scale, offset, table, rounding)

    return _on_grid(grid, w, code)


def encode_scales(grid: Grid, scale: Array) -> QArray:
    """Positive `scale` on a fitted grid; none becomes zero, however far below its block's largest it lies."""
    smallest = grid.meta.element.levels()
    smallest = jnp.float32(smallest[smallest > 0][0])

    def code(x: Array, outer: Array | None, offset: Array | None, table: Array | None) -> Array:
        if offset is None:
            x = jnp.maximum(x, _times(smallest, outer))
        return encode_with(grid.meta, x, outer, offset, table)

    return _on_grid(grid, scale, code)


def decode(q: QArray) -> Array:
    """The values of `q` in its logical shape as float32, whatever its logical dtype."""
    codes, _ = blocks.split(q.codes, q.meta.block)
    x = decode_with(q.meta, codes, *_spread(q, q.codes.shape))
    return blocks.unpad(x.reshape(q.codes.shape), q.meta.padding)


def saturated(x: Array, dtype: DTypeLike) -> Array:
    """float32 `x` in a float dtype: beyond its range the largest value, not infinity; NaN kept.

    A grid may reach beyond float16 or bfloat16 though the numbers it was fitted to do not.

    >>> saturated(jnp.array([65536.0, -jnp.inf, jnp.nan]), "float16").tolist()
    [65504.0, -65504.0, nan]
    """
    top = float(jnp.finfo(dtype).max)
    return (x if top >= rules.F32_MAX else jnp.clip(x, jnp.float32(-top), jnp.float32(top))).astype(dtype)


def padded(w: Array, meta: Meta) -> Array:
    """`w` with the padding of `meta`: zeros, or the last value where zeros would move the minimum."""
    return blocks.pad(w, meta.padding, "edge" if meta.offset in ("minimum", "float_zero") else "constant")


def _on_grid(grid: Grid, w: Array, code: Callable[..., Array]) -> QArray:
    w = padded(w, grid.meta)
    x, _ = blocks.split(w.astype(jnp.float32), grid.meta.block)
    codes = code(x, *_spread(grid, w.shape))
    return QArray(codes.reshape(w.shape), grid.scales, grid.offset, grid.table, grid.meta)


def _spread(grid: Grid | QArray, shape: tuple[int, ...]) -> tuple[Array | None, Array | None, Array | None]:
    """Scale, offset and table against an array of `shape` whose core axes `blocks.split` has cut."""
    block = grid.meta.block
    core = shape[len(shape) - len(block) :]
    scale, offset = (None if part is None else blocks.spread(part, core, block) for part in steps(grid))
    return scale, offset, None if grid.table is None else blocks.spread(grid.table, core, block, trailing=1)


def _over(x: Array, scale: Array | None) -> Array:
    return x if scale is None else rules.quotient(x, scale)


def _times(value: Array, scale: Array | None) -> Array:
    return value if scale is None else value * scale


def _value(child: Array | QArray) -> Array:
    return decode(child) if isinstance(child, QArray) else rules.load(child)


def _once(step: Array) -> Array:
    """`step`, computed once a block: XLA repeats cheap arithmetic for every element of a block, but no division."""
    return rules.quotient(step, 1.0)


def _given(meta: Meta, offset: Array | None) -> Array:
    if offset is None:
        raise ValueError(f"{meta.element.name} with offset {meta.offset!r} was given no offset")
    return offset
