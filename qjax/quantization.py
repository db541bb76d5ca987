"""Arrays to quantized arrays and back: fit the grid, choose codes, decode, and the straight-through version."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax import Array

from qjax import blocks, fitting, ggml
from qjax.accounting import bits_per_weight, nbytes
from qjax.coding import Rounding, Steps, decode, decode_with, encode, encode_with, saturated, steps
from qjax.formats.format import FULL, Format
from qjax.formats.spelling import as_format
from qjax.qarray import Grid, QArray
from qjax.ranges import Range
from qjax.validity import check

__all__ = [
    "bits_per_weight",
    "check",
    "decode_with",
    "dequantize",
    "encode",
    "encode_with",
    "fake_quantize",
    "fit",
    "nbytes",
    "outer_steps",
    "quantize",
    "stack_groups",
    "steps",
]


def quantize(
    w: Array,
    fmt: Format | str,
    axis: int | Sequence[int] = -2,
    batch_axes: int = 0,
    range: Range | None = None,
    rounding: Rounding | None = None,
    weights: Array | None = None,
) -> QArray:
    """`w` [batch..., core...] (any float dtype) on the grid of `fmt`, the blocks lying along `axis`.

    `axis` is the contraction axis of a weight; `batch_axes` leading axes are independent (stacked layers, experts).
    `range` estimates each block's range (`qjax.ranges`), absmax or min-max if None; `rounding` picks codes
    (`qjax.rounding`), nearest with ties to even if None. The scale is rounded to its storage before codes are chosen.
    `weights` (float, broadcast against `w`) say how often each value counts for `range` and for a format's `levels`:
    its importance. The block types of ggml ("q4_k") search under them and take no `range`; see `qjax.ggml`.

    Zero blocks have scale 1; values beyond the range, infinities included, saturate; a NaN makes its block NaN (with
    a tensor scale, its tensor): `qjax.check` names it. An axis no whole number of blocks long is padded with zeros
    (its last value, with offset "minimum"), recorded in `meta.padding`.

    >>> q = quantize(jnp.array([[0.5], [-1.0], [7.5], [3.0]]), "int4_g64")
    >>> q.shape, q.meta.padding, q.codes[:4, 0].tolist()
    ((4, 1), (60, 0), [0, -1, 7, 3])
    """
    fmt, axes, w = _canonical(w, fmt, axis, batch_axes)
    return _quantize(w, rounding, weights, fmt=fmt, axes=axes, batch_axes=batch_axes, range=range)


@functools.partial(jax.jit, static_argnames=("fmt", "axes", "batch_axes", "range"))
def _quantize(
    w: Array,
    rounding: Rounding | None,
    weights: Array | None = None,
    *,
    fmt: Format,
    axes: tuple[int, ...],
    batch_axes: int,
    range: Range | None,
) -> QArray:
    if fmt.rule == "ggml" and range is None and rounding is None:
        return ggml.quantize_blocks(w, ggml.type_of(fmt), axes[0], batch_axes, weights)
    return encode(_fit(w, fmt, axes, batch_axes, range, None, weights), w, rounding)


def fit(
    w: Array,
    fmt: Format | str,
    axis: int | Sequence[int] = -2,
    batch_axes: int = 0,
    range: Range | None = None,
    outer: Steps | None = None,
    weights: Array | None = None,
) -> Grid:
    """The grid `quantize` would use, without codes.

    `outer` reuses a fitted outer level of a format whose scales are quantized: `outer_steps` of a fitted grid, or the
    part of it that belongs to the blocks in `w`. So a solver may refit one group [g, N] in a loop under the tensor
    scale of the whole matrix; `stack_groups` puts such grids together.

    The outer level is fitted first, from the unclipped ranges: `range` then works under it.
    """
    fmt, axes, w = _canonical(w, fmt, axis, batch_axes)
    if outer is not None and not isinstance(fmt.scale, Format):
        raise ValueError(f"outer steps were given, but the scales of {fmt.name} are plain {fmt.scale}")
    return _fit(w, fmt, axes, batch_axes, range, outer, weights)


@jax.jit
def dequantize(q: QArray) -> Array:
    """The values of `q` in its logical shape and dtype, saturated at the ends of that.

    >>> dequantize(quantize(jnp.array([[0.5], [-1.0], [7.5], [3.0]]), "int4_g64"))[:, 0].tolist()
    [0.0, -1.0, 7.0, 3.0]
    """
    return saturated(decode(q), q.meta.dtype)


def fake_quantize(
    w: Array,
    fmt: Format | str,
    axis: int | Sequence[int] = -2,
    batch_axes: int = 0,
    range: Range | None = None,
) -> Array:
    """`dequantize(quantize(w, ...))` whose gradient is the identity (straight-through; arXiv:1308.3432).

    >>> jax.grad(lambda w: fake_quantize(w, "int3_channel").sum())(jnp.ones((4, 2))).tolist()[0]
    [1.0, 1.0]
    """
    fmt, axes, w = _canonical(w, fmt, axis, batch_axes)
    return _straight_through(w, fmt, axes, batch_axes, range)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3, 4))
def _straight_through(w: Array, fmt: Format, axes: tuple[int, ...], batch_axes: int, range: Range | None) -> Array:
    return dequantize(_quantize(w, None, fmt=fmt, axes=axes, batch_axes=batch_axes, range=range))


def _forward(w: Array, fmt: Format, axes: tuple[int, ...], batch_axes: int, range: Range | None) -> tuple[Array, None]:
    return _straight_through(w, fmt, axes, batch_axes, range), None


def _backward(
    fmt: Format, axes: tuple[int, ...], batch_axes: int, range: Range | None, residual: None, g: Array
) -> tuple[Array]:
    return (g,)


_straight_through.defvjp(_forward, _backward)


def outer_steps(grid: Grid | QArray) -> Steps | None:
    """Scale and offset of the outer level, one per scale [batch..., blocks of each core axis]; None for plain scales.

    A solver slices them as it slices the scales and hands the piece to `fit(..., outer=)`.
    """
    inner = grid.scales[0] if grid.scales else None
    if not isinstance(inner, QArray):
        return None
    core, block = inner.codes.shape[inner.codes.ndim - len(inner.meta.block) :], inner.meta.block
    scale, offset = (None if step is None else blocks.enlarge(step, core, block) for step in steps(inner))
    return scale, offset


def stack_groups(parts: Grid, whole: Grid) -> Grid:
    """One grid from grids fitted group by group, as `lax.scan` stacks them (a leading axis of groups of [g, N]).

    `whole` is a grid fitted on the whole matrix [K, N] with blocks along -2; its outer level and metadata are kept.
    """

    def join(part: Array | QArray | None, like: Array | QArray | None) -> Array | QArray:
        if isinstance(like, QArray) and isinstance(part, QArray):
            return dataclasses.replace(like, codes=part.codes.reshape(like.codes.shape))
        if isinstance(like, Array) and isinstance(part, Array):
            return part.reshape(like.shape)
        raise TypeError(f"parts hold a {type(part).__name__} where the whole has a {type(like).__name__}")

    scales = tuple(join(p, w) for p, w in zip(parts.scales, whole.scales, strict=True))
    offset = None if whole.offset is None else join(parts.offset, whole.offset)
    table = None if whole.table is None or parts.table is None else parts.table.reshape(whole.table.shape)
    return Grid(scales, offset, table, whole.meta)


def _canonical(
    w: Array, fmt: Format | str, axis: int | Sequence[int], batch_axes: int
) -> tuple[Format, tuple[int, ...], Array]:
    fmt, w = as_format(fmt), jnp.asarray(w)
    if not jnp.issubdtype(w.dtype, jnp.floating):
        raise TypeError(f"only real floating-point arrays are quantized, got {w.dtype}{list(w.shape)}")
    if not 0 <= batch_axes < max(w.ndim, 1):
        raise ValueError(f"batch_axes={batch_axes} leaves no core axis of shape {w.shape}")
    if 0 in w.shape:
        raise ValueError(f"shape {w.shape} has no elements")
    given = (axis,) if isinstance(axis, int) else tuple(axis)
    axes = tuple(sorted({a - w.ndim if a >= 0 else a for a in given}))
    core = w.ndim - batch_axes
    if not axes or not all(-core <= a < 0 for a in axes):
        raise ValueError(
            f"axis={axis} is no core axis of shape {w.shape} with batch_axes={batch_axes}; "
            f"name one of {tuple(range(-core, 0))}, e.g. axis=-1 for a vector"
        )
    if len(axes) > 1 and fmt.block != FULL:
        raise ValueError(f"{fmt.name}: blocks of {fmt.block} lie along one axis, got axis={axis}")
    return fmt, axes, w


def _fit(
    w: Array,
    fmt: Format,
    axes: tuple[int, ...],
    batch_axes: int,
    range: Range | None,
    outer: Steps | None,
    weights: Array | None,
) -> Grid:
    if fmt.rule == "ggml":
        if range is not None or outer is not None:
            raise ValueError(
                f"{fmt.name}: ggml's encoder chooses all scales of a block together, without range estimators or an "
                "outer level given to it; leave them out (of GPTQ's groups choose 'static')"
            )
        return ggml.quantize_blocks(w, ggml.type_of(fmt), axes[0], batch_axes, weights).grid
    core = w.ndim - batch_axes
    block = tuple(fmt.block if axis in axes else fmt.across for axis in _negative(core))
    return fitting.fit_blocks(w, fmt, axes, block, range, outer, weights=weights)


def _negative(core: int) -> range:
    """The core axes as negative numbers."""
    return range(-core, 0)
