"""Fitting a grid: ranges to scales, scales to their storage, level after level."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax.numpy as jnp
from jax import Array

from qjax import blocks
from qjax.coding import Steps, decode_with, encode_scales, encode_with, padded, steps
from qjax.formats import rules
from qjax.formats.format import FULL, Choice, Format
from qjax.formats.one_of import OneOf, select
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

    `weights` (broadcasts against `w`) say how often each value counts for `estimate`, in a choice and for the format's
    own `levels`; padding never counts.
    `positive` says that `w` are scales: a zero stands for a block of zeros, which any scale serves.
    """
    batch, core = w.shape[: w.ndim - len(block)], w.shape[w.ndim - len(block) :]
    if fmt.alpha is not None:
        return _fit_cross(w, fmt, axes, len(core))
    meta = Meta(fmt.element, block, fmt.offset, blocks.padding_for(core, block), str(w.dtype))
    x, inside = blocks.split(padded(w, meta).astype(jnp.float32), block)
    if positive:
        peak = jnp.max(x, axis=inside, keepdims=True)
        x = jnp.where((x > 0) | jnp.isnan(x), x, jnp.where(peak == 0, jnp.float32(1), peak))
    counted = estimate is not None or fmt.levels is not None or isinstance(fmt.rule, Choice)
    if any(meta.padding) and weights is None and counted:
        weights = jnp.ones(core, jnp.float32)
    if weights is not None:
        weights = jnp.broadcast_to(weights.astype(jnp.float32), w.shape)
        weights, _ = blocks.split(blocks.pad(weights, meta.padding), block)
    shape = (*batch, *blocks.grid_shape(core, block))
    if fmt.scale is None:
        return _with_levels(Grid((), None, None, meta), fmt, x, inside, weights, shape)

    def asked(c: Format, low: Array, high: Array) -> tuple[Array, Array]:
        """The scale that candidate `c` asks for, unrounded, and the least value, both of shape `shape`."""
        low, high = rules.clip_range(c, low.reshape(shape), high.reshape(shape), positive)
        if isinstance(fmt.scale, Format):
            return rules.scale_of(c, low, high, empty=0.0), low
        scale = rules.scale_of(c, low, high)
        return rules.within(scale, str(fmt.scale), c) if isinstance(fmt.rule, Choice) else scale, low

    level = None
    if isinstance(fmt.scale, Format):
        if outer is None:
            # From the unclipped ranges, so that an estimator searches under a fixed outer level.
            scale, _ = asked(fmt, *extremes(x, inside, fmt))
            level = _fit_scales(scale, fmt.scale, axes, len(batch))
        else:
            level = _outer_grid(fmt.scale, outer, len(block))

    def kept(scale: Array, low: Array) -> tuple[tuple[Array | QArray, ...], Array | None]:
        """Scales and offset as they will be kept."""
        scales = (_store(scale, fmt, level),)
        if factor := rules.FACTOR.get(str(fmt.rule)):
            scales += (jnp.full((*batch, *(1 for _ in core)), factor, jnp.float32),)
        if fmt.offset in (None, "minimum"):
            return scales, None if fmt.offset is None else _store_offset(low, fmt)
        value, _ = steps(Grid(scales, None, None, meta))
        assert value is not None
        zero = rules.quotient(-low, value)
        return scales, fmt.element.encode(jnp.round(zero)) if fmt.offset == "zero_point" else _store_offset(zero, fmt)

    def project(c: Format, low: Array, high: Array) -> Array:
        """`x` on the grid that the range [low, high] would give under candidate `c`."""
        values = steps(Grid(*kept(*asked(c, low, high)), None, meta))
        scale, offset = (None if v is None else v.reshape(low.shape) for v in values)
        own = replace(meta, element=c.element)
        return decode_with(own, encode_with(own, x, scale, offset), scale, offset)

    def range_of(c: Format) -> tuple[Array, Array]:
        return extremes(x, inside, c) if estimate is None else estimate(x, inside, c, partial(project, c), weights)

    options = [(c, range_of(c)) for c in fmt.candidates]
    wanted = [asked(c, *ends) for c, ends in options]
    (scale, low), table = wanted[0], None
    if isinstance(fmt.rule, Choice):
        over = inside if fmt.rule.per == "block" else tuple(range(len(batch) - x.ndim, 0))
        errors = [_error(x, project(c, *ends), over, fmt.rule.by, weights) for c, ends in options]
        index = jnp.argmin(jnp.stack(errors), axis=0).astype(jnp.uint8)
        index = index.reshape(shape if fmt.rule.per == "block" else (*batch, *(1 for _ in core)))
        scale = select(index, [scale for scale, _ in wanted])
        table = index[..., None] if isinstance(fmt.element, OneOf) else None
    return _with_levels(Grid(*kept(scale, low), table, meta), fmt, x, inside, weights, shape)


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


def _error(x: Array, y: Array, over: tuple[int, ...], by: str, weights: Array | None) -> Array:
    """The error of `y` over some axes (kept), relative to the largest magnitude: squares of tiny ones underflow."""
    unit = jnp.maximum(jnp.max(jnp.abs(x), axis=over, keepdims=True), jnp.float32(rules.F32_TINY))
    error = jnp.abs(y - x) / unit
    error = error * error if by == "mse" else error
    error = error if weights is None else error * weights
    return (jnp.max if by == "max" else jnp.sum)(error, axis=over, keepdims=True)


def _store(scale: Array, fmt: Format, level: Grid | None) -> Array | QArray:
    if level is not None:
        return encode_scales(level, scale)
    assert isinstance(fmt.scale, str)
    return rules.store(scale, fmt.scale, fmt)


def _store_offset(offset: Array, fmt: Format) -> Array:
    """A minimum or real zero point in its storage, saturated."""
    dtype = _offset_dtype(fmt)
    top = jnp.finfo(dtype).max.astype(jnp.float32)
    return jnp.clip(offset, -top, top).astype(dtype)


def _fit_cross(w: Array, fmt: Format, axes: tuple[int, ...], core: int) -> Grid:
    """Two factors: one along the block axes, one across them (CrossQuant)."""
    others = tuple(a for a in range(-core, 0) if a not in axes)
    if not others:
        raise ValueError(f"{fmt.name} needs rows and columns: shape {w.shape} has no axis beside {axes}")
    assert isinstance(fmt.scale, str)
    # A little less than all of float32, so that rounding up two factors does not leave it.
    top = jnp.float32(rules.F32_MAX * (1 - 2.0**-6))
    row, column = (jnp.clip(extremes(w.astype(jnp.float32), a, fmt)[1], 0, top) for a in (axes, others))
    scales = tuple(rules.store(factor, fmt.scale, fmt) for factor in rules.cross(fmt, row, column))
    return Grid(scales, None, None, Meta(fmt.element, (1,) * core, dtype=str(w.dtype)))


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
    """An offset is stored as its scale is, at the innermost level not itself quantized; float32 beside narrow types."""
    if isinstance(fmt.scale, Format):
        return _offset_dtype(fmt.scale)
    return fmt.scale if fmt.scale in ("bfloat16", "float16") else "float32"
