"""Fitting a grid: ranges to scales, scales to their storage, level after level."""

from __future__ import annotations

from dataclasses import replace

import jax.numpy as jnp
from jax import Array

from qjax import blocks
from qjax.coding import Steps, decode_with, encode_scales, encode_with, padded, steps
from qjax.formats import rules
from qjax.formats.format import FULL, Format
from qjax.qarray import Grid, Meta, QArray
from qjax.ranges import Range, extremes


def fit_blocks(
    w: Array,
    fmt: Format,
    axes: tuple[int, ...],
    block: tuple[int, ...],
    estimate: Range | None = None,
    outer: Steps | None = None,
    positive: bool = False,
    weights: Array | None = None,
) -> Grid:
    """The grid of `w` [batch..., core...] for resolved core `block` sizes; `axes` (negative) are the block axes.

    `weights` (broadcasts against `w`) say how often each value counts for `estimate` and for the format's own
    `levels`; padding never counts.
    `positive` says that `w` are scales: a zero stands for a block of zeros, which any scale serves.
    """
    batch, core = w.shape[: w.ndim - len(block)], w.shape[w.ndim - len(block) :]
    meta = Meta(fmt.element, block, fmt.offset, blocks.padding_for(core, block), str(w.dtype))
    x, inside = blocks.split(padded(w, meta).astype(jnp.float32), block)
    if positive:
        peak = jnp.max(x, axis=inside, keepdims=True)
        x = jnp.where((x > 0) | jnp.isnan(x), x, jnp.where(peak == 0, jnp.float32(1), peak))
    if any(meta.padding) and weights is None and (estimate is not None or fmt.levels is not None):
        weights = jnp.ones(core, jnp.float32)
    if weights is not None:
        weights = jnp.broadcast_to(weights.astype(jnp.float32), w.shape)
        weights, _ = blocks.split(blocks.pad(weights, meta.padding), block)
    shape = (*batch, *blocks.grid_shape(core, block))
    if fmt.scale is None:
        return _with_levels(Grid((), None, None, meta), fmt, x, inside, weights, shape)

    level = None
    if isinstance(fmt.scale, Format):
        if outer is None:
            # From the unclipped ranges, so that an estimator searches under a fixed outer level.
            low, high = rules.clip_range(fmt, *extremes(x, inside, fmt))
            level = _fit_scales(rules.scale_of(fmt, low, high, empty=0.0).reshape(shape), fmt.scale, axes, len(batch))
        else:
            level = _outer_grid(fmt.scale, outer, len(block))

    def stored(low: Array, high: Array) -> tuple[Array | QArray, Array | None]:
        """Scale and offset as they will be kept, from a range of shape `shape`."""
        low, high = rules.clip_range(fmt, low, high, positive)
        if level is None:
            assert isinstance(fmt.scale, str)
            scale = rules.store(rules.scale_of(fmt, low, high), fmt.scale, fmt)
        else:
            scale = encode_scales(level, rules.scale_of(fmt, low, high, empty=0.0))
        if fmt.offset is None:
            return scale, None
        if fmt.offset == "zero_point":
            value, _ = steps(Grid((scale,), None, None, meta))
            assert value is not None
            return scale, fmt.element.encode(jnp.round(rules.quotient(-low, value)))
        return scale, low.astype(_offset_dtype(fmt))

    def project(low: Array, high: Array) -> Array:
        """`x` on the grid that the range [low, high] would give: what a search compares."""
        scale, offset = stored(low.reshape(shape), high.reshape(shape))
        values = steps(Grid((scale,), offset, None, meta))
        scale, offset = (None if v is None else v.reshape(low.shape) for v in values)
        assert scale is not None
        return decode_with(meta, encode_with(meta, x, scale, offset), scale, offset)

    if estimate is None:
        low, high = extremes(x, inside, fmt)
    else:
        low, high = estimate(x, inside, fmt, project, weights)
    scale, offset = stored(low.reshape(shape), high.reshape(shape))
    return _with_levels(Grid((scale,), offset, None, meta), fmt, x, inside, weights, shape)


def _with_levels(
    grid: Grid, fmt: Format, x: Array, inside: tuple[int, ...], weights: Array | None, shape: tuple[int, ...]
) -> Grid:
    """`grid` with a table for each block if the format fits them, to the split `x` in units of its scale."""
    if fmt.levels is None:
        return grid
    kept = tuple(1 if a - x.ndim in inside else n for a, n in enumerate(x.shape))
    scale, offset = (None if part is None else part.reshape(kept) for part in steps(grid))
    x = x if offset is None else x - offset
    x = x if scale is None else rules.quotient(x, scale)
    return replace(grid, table=fmt.levels(x, inside, fmt, weights).reshape(*shape, -1))


def _fit_scales(scale: Array, fmt: Format, axes: tuple[int, ...], batch: int) -> Grid:
    block = scale_block(fmt, scale.shape[batch:], axes)
    return fit_blocks(scale, fmt, axes, block, positive=True)


def scale_block(fmt: Format, core: tuple[int, ...], axes: tuple[int, ...]) -> tuple[int, ...]:
    """The core block of a format of scales on scales of shape `core`.

    An integer `fmt.block` counts scales. A tile takes the largest divisor of the block axis that fits; once it spans
    that axis, whole columns: the largest divisor of the last other axis that still fits. So tiles never need padding,
    move with a transpose and are cut only where columns are.

    >>> from qjax.formats.spelling import DOUBLE
    >>> scale_block(DOUBLE, (9, 576), (-2,)), scale_block(DOUBLE, (1024, 64), (-2,))
    ((9, 24), (256, 1))
    """
    names = [a - len(core) for a in range(len(core))]
    if fmt.block == FULL:
        return tuple(FULL if a in axes else fmt.across for a in names)
    block, left = dict.fromkeys(names, 1), fmt.block
    for a in [*sorted(axes, reverse=True), *[a for a in reversed(names) if a not in axes][:1]]:
        n = core[a]
        block[a] = max(d for d in range(1, min(n, left) + 1) if n % d == 0)
        left //= block[a]
        if block[a] < n:
            break
    return tuple(block[a] for a in names)


def _outer_grid(fmt: Format, outer: Steps, core: int) -> Grid:
    """A grid of scales under given steps, one per scale."""
    scale, offset = outer
    meta = Meta(fmt.element, (1,) * core, fmt.offset, dtype="float32")
    return Grid(() if scale is None else (scale,), offset, None, meta)


def _offset_dtype(fmt: Format) -> str:
    """A minimum is stored as its scale is, at the innermost level that is not itself quantized."""
    return _offset_dtype(fmt.scale) if isinstance(fmt.scale, Format) else fmt.scale or "float32"
