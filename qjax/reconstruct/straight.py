"""A grid with learned steps: its values are what is stored, its gradients those of the range that was learned."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from qjax import blocks
from qjax.coding import decode_with, encode_with, padded
from qjax.formats.format import Format
from qjax.formats.rules import F32_MAX
from qjax.qarray import Grid, Meta
from qjax.quantization import fit, steps

Steps = tuple[jax.Array, jax.Array | None]


def exactly(value: jax.Array, surrogate: jax.Array) -> jax.Array:
    """`value` bit for bit (where the surrogate is finite), with the derivative of `surrogate`."""
    return lax.stop_gradient(value) + (surrogate - lax.stop_gradient(surrogate))


def block_scales(w: jax.Array, fmt: Format) -> jax.Array:
    """The float32 scales of `w` [batch..., K, N] in `fmt`, [batch..., blocks of each core axis].

    Raises:
        ValueError: the format is a cast without scales.
    """
    scale, _ = steps(fit(w, fmt, axis=-2, batch_axes=w.ndim - 2))
    if scale is None:
        raise ValueError(f"{fmt.name} has no scale whose range could be learned; AdaRound needs none")
    return scale


def scaled_grid(w: jax.Array, fmt: Format, low: jax.Array, high: jax.Array) -> tuple[Grid, Steps]:
    """The grid of `w` [batch..., K, N] whose blocks' min-max ranges are multiplied by `low` and `high`.

    `low`, `high`: [batch..., blocks of each core axis], positive. Returns the stored grid and its float32 steps, which
    are differentiable in `low` and `high`: a symmetric scale grows with max(-low, high), whatever rule rounds it
    (power-of-two scales included, straight through), an affine one with high - low; zero point and minimum follow low.
    """
    ends: list[jax.Array] = []

    def estimate(
        x: jax.Array, axes: tuple[int, ...], fmt: Format, project: object, weights: jax.Array | None = None
    ) -> tuple[jax.Array, jax.Array]:
        del fmt, project, weights
        least, most = jnp.min(x, axis=axes, keepdims=True), jnp.max(x, axis=axes, keepdims=True)
        ends[:] = [least * low.reshape(least.shape), most * high.reshape(most.shape)]
        return ends[0], ends[1]

    grid = fit(w, fmt, axis=-2, batch_axes=w.ndim - 2, range=estimate)
    scale, offset = steps(grid)
    assert scale is not None  # as in `block_scales`
    least, most = (end.reshape(scale.shape) for end in ends)
    width = most - least if fmt.offset is not None else jnp.maximum(-least, most)
    alive = lax.stop_gradient(width) > 0
    ratio = jnp.where(alive, width, 1.0) / lax.stop_gradient(jnp.where(alive, width, 1.0))  # 1, and grows with width
    scale = lax.stop_gradient(scale) * ratio
    if offset is not None:
        offset = exactly(offset, -least / scale if fmt.offset == "zero_point" else least)
    return lax.stop_gradient(grid), (scale, offset)


def project(grid: Grid, w: jax.Array, learned: Steps) -> jax.Array:
    """The values of `w` [batch..., K, N] on a grid, float32, with the gradients of LSQ (catalogue B10).

    d/dw is 1 inside the range and 0 beyond it; d/dscale is q - w/scale inside and the end of the range beyond.
    `learned` are the grid's steps, differentiable; the values are those of `dequantize(encode(grid, w))`.
    """
    meta, e = grid.meta, grid.meta.element
    x, scale, offset, table = _split(grid, w, learned)
    stored = lax.stop_gradient((scale, offset))
    codes = encode_with(meta, lax.stop_gradient(x), *stored, table)
    value = decode_with(meta, codes, *stored, table)
    units = _units(meta, x, scale, offset)
    least, most = jnp.float32(e.min), jnp.float32(e.max)
    if table is not None:  # a block's own values end elsewhere
        least, most = (e.round(jnp.full_like(units, end), table) for end in (-F32_MAX, F32_MAX))
    clipped = jnp.clip(units, least, most)
    rounded = clipped + lax.stop_gradient(e.decode(codes, table) - clipped)
    if offset is None:
        surrogate = rounded * scale
    else:
        surrogate = (rounded - offset) * scale if meta.offset == "zero_point" else rounded * scale + offset
    return _joined(meta, w, exactly(value, surrogate))


def moved(grid: Grid, w: jax.Array, learned: Steps, shift: jax.Array) -> jax.Array:
    """`w` [batch..., K, N] moved by `shift` times the gap between the two values of the grid around it, float32.

    With |shift| < 1/2 rounding reaches these two values and no other. What lies on a value or beyond the range stays.
    """
    meta = grid.meta
    x, scale, offset, table = _split(grid, w, lax.stop_gradient(learned))
    below, above = meta.element.neighbours(_units(meta, lax.stop_gradient(x), scale, offset), table)
    by, _ = blocks.split(blocks.pad(shift, meta.padding), meta.block)
    return _joined(meta, w, x + by * (above - below) * scale)


def _split(grid: Grid, w: jax.Array, learned: Steps) -> tuple[jax.Array, jax.Array, jax.Array | None, jax.Array | None]:
    """`w` cut into blocks, and scale, offset and table against it."""
    meta = grid.meta
    full = padded(w, meta)
    core = full.shape[full.ndim - len(meta.block) :]
    x, _ = blocks.split(full.astype(jnp.float32), meta.block)
    scale, offset = learned
    return (
        x,
        blocks.spread(scale, core, meta.block),
        None if offset is None else blocks.spread(offset, core, meta.block),
        None if grid.table is None else blocks.spread(grid.table, core, meta.block, trailing=1),
    )


def _joined(meta: Meta, w: jax.Array, x: jax.Array) -> jax.Array:
    core = len(meta.block)
    batch, sizes = w.shape[: w.ndim - core], w.shape[w.ndim - core :]
    full = (n + p for n, p in zip(sizes, meta.padding, strict=True))
    return blocks.unpad(x.reshape(*batch, *full), meta.padding)


def _units(meta: Meta, x: jax.Array, scale: jax.Array, offset: jax.Array | None) -> jax.Array:
    """`x` in the units of the element's values."""
    if offset is None:
        return x / scale
    return x / scale + offset if meta.offset == "zero_point" else (x - offset) / scale
