"""y = x @ W[e] for rows of x sorted by expert e, and the narrow codes of every expert under scales of groups, on TPUs.

Rows are moved first, so that those of an expert begin with a block of their own and a block of rows meets one matrix:
the kernel is then that of `group_scaled`, with the matrix of each block read ahead of it (scalar prefetch). An expert
without rows is never read. Blocks are as few as serve any routing of so many rows; those that a routing leaves empty
are neither multiplied nor fetched for.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from qjax.kernels.tpu import bfloat16_words, block_scales, codings, group_scaled, spans, tiles
from qjax.kernels.tpu.codings import Coding
from qjax.kernels.tpu.tiles import Blocks


class Placement(NamedTuple):
    """Where rows of x lie in blocks of `rows`: [blocks * rows] and [M] count rows, [blocks] experts."""

    source: jax.Array  # the row of x that a place holds, M where it holds none
    place: jax.Array  # the place of a row of x; the last where no expert takes it
    expert: jax.Array  # the matrix of a block
    used: jax.Array  # [1], blocks that hold a row


def placement(sizes: jax.Array, M: int, rows: int) -> Placement:
    """For sizes [E] of the runs of rows that the experts take, in order; rows of x after the last run have no expert.

    >>> p = placement(jnp.array([3, 0, 1]), 5, 2)
    >>> p.source.tolist(), p.expert.tolist(), int(p.used[0])
    ([0, 1, 2, 5, 3, 5, 5, 5, 5, 5], [0, 0, 2, 2, 2], 3)
    >>> p.place.tolist()
    [0, 1, 2, 4, 9]
    """
    E = sizes.shape[0]
    blocks = min(M, M // rows + E)
    sizes = sizes.astype(jnp.int32)
    ends, taken = jnp.cumsum(sizes), -(-sizes // rows)
    after = jnp.cumsum(taken)  # blocks up to and with each expert
    expert = jnp.minimum(jnp.searchsorted(after, jnp.arange(blocks), side="right"), E - 1).astype(jnp.int32)
    used = after[-1:]
    expert = jnp.where(jnp.arange(blocks) < used, expert, expert[used - 1])
    first_row, first_place = ends - sizes, (after - taken) * rows
    places = jnp.arange(blocks * rows, dtype=jnp.int32)
    e = jnp.repeat(expert, rows, total_repeat_length=blocks * rows)
    row = first_row[e] + places - first_place[e]
    source = jnp.where((row < ends[e]) & (places < used * rows), row, M)
    owner = jnp.searchsorted(ends, jnp.arange(M), side="right").astype(jnp.int32)
    own = jnp.minimum(owner, E - 1)
    place = first_place[own] + jnp.arange(M) - first_row[own]
    return Placement(source, jnp.where(owner < E, place, blocks * rows - 1), expert, used)


def blocks(
    M: int, E: int, K: int, N: int, group: int, coding: Coding, scaled: str | None = None, chip: str | None = None
) -> Blocks:
    """The blocks taken where none are given: `group_scaled`'s for the rows that one of E experts takes in the mean."""
    return group_scaled.cut(-(-M // E), K, N, group, coding, scaled, chip)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def matmul(
    x: jax.Array,
    codes: jax.Array,
    scale: jax.Array,
    sizes: jax.Array,
    coding: Coding,
    tiling: Blocks | None = None,
    scaled: str | None = None,
    interpret: Any = False,
) -> jax.Array:
    """x [M, K] bfloat16 @ (values of codes [E, K, N] * scale [E, G, N] repeated K / G times) -> [M, N] float32.

    sizes: int [E], how many rows of x meet each matrix, in order; rows after these become zeros. Codes, scales,
    `tiling` and `scaled` are as in `group_scaled.matmul`, without codes that are looked up and more than two buffers.
    Gradients reach x, and scale unless it has a byte, and are those of `reference`. ValueError for shapes that do not
    fit.
    """
    (M, K), (E, groups, N) = x.shape, scale.shape
    group = K // groups
    why = group_scaled.refuse(K, N, group, coding) or (f"{coding.name} is looked up" if coding.lookup else None)
    if codes.shape != (E, K // coding.packed, N) or codes.dtype != coding.dtype or K % groups or sizes.shape != (E,):
        why = why or f"sizes {sizes.shape}"
    if why is not None:
        raise ValueError(
            f"x {x.shape}, codes {codes.shape} {codes.dtype} as {coding.name} and scale {scale.shape} do not fit: {why}"
        )
    if M == 0:
        return jnp.zeros((0, N), jnp.float32)
    span = coding.span(K, group)
    assert span is not None  # refused before
    if scaled is None:
        scaled = coding.scaled or group_scaled.formulation(-(-M // E), spans.copies(span, group))
    coding = codings.taken(coding, scaled, tiles.chip(), group)
    copies = spans.copies(span, group) if scaled == "sums" else 1
    tiling = blocks(M, E, K, N, group, coding, scaled, tiles.chip()) if tiling is None else tiling
    bm, bn, bk, buffers = tiling
    if K % bk or N % bn or buffers > 2 or (bk < K and bk % group_scaled.step(coding, group, span)):
        raise ValueError(f"{tiling} do not divide {codes.shape} into whole groups of {group}, eight or all of them")
    at = placement(sizes, M, bm)
    placed = jnp.take(x.astype(jnp.bfloat16), at.source, axis=0, mode="fill", fill_value=0)
    if scaled == "sums":
        placed = spans.spread(placed * jnp.bfloat16(1 / coding.factor), bm, span, group)
    placed = bfloat16_words.in_order(placed, coding.stride)
    count, across, down = at.expert.shape[0], N // bn, K // bk

    def matrix(i: Any, j: Any, k: Any, expert: Any, used: Any) -> tuple[Any, ...]:
        """Of a block without rows the one that is there already."""
        empty = i >= used[0]
        return expert[i], jnp.where(empty, down - 1, k), jnp.where(empty, across - 1, j)

    call = pl.pallas_call(
        functools.partial(_block, scaled=scaled, coding=coding, span=span, group=group),
        out_shape=jax.ShapeDtypeStruct((count * bm, N), jnp.float32),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=2,
            grid=(count, across, down),
            in_specs=[
                pl.BlockSpec((bm * copies, bk), lambda i, j, k, *_: (i, k)),
                pl.BlockSpec((None, bk // coding.packed, bn), matrix),
                pl.BlockSpec((None, bk // group, bn), matrix),
            ],
            out_specs=pl.BlockSpec((bm, bn), lambda i, j, k, *_: (i, j)),
            scratch_shapes=[
                pltpu.VMEM((bk // group, bn), jnp.float32),
                *([spans.room_for_levels(bk, bm * copies, coding, span)] if scaled == "sums" else []),
            ],
        ),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("arbitrary", "arbitrary", "arbitrary")),
        name=f"{coding.name}_experts_{scaled}",
        interpret=interpret,
    )
    y = call(at.expert, at.used, placed, codes, block_scales.handed(scale))
    return jnp.where((jnp.arange(M) < sizes.sum())[:, None], y[at.place], 0)


def _block(expert: Any, used: Any, *refs: Any, scaled: str, coding: Coding, span: int, group: int) -> None:
    body = group_scaled.sums if scaled == "sums" else group_scaled.rounded
    y_ref, has_rows = refs[3], pl.program_id(0) < used[0]

    @pl.when(has_rows & (pl.program_id(2) == 0))
    def _() -> None:
        y_ref[...] = jnp.zeros_like(y_ref)

    @pl.when(has_rows)
    def _() -> None:
        body(*refs, coding=coding, span=span, group=group)


def reference(x: jax.Array, codes: jax.Array, scale: jax.Array, sizes: jax.Array, coding: Coding) -> jax.Array:
    """What `matmul` computes, with all weights dequantized and everything in float32."""
    W = jax.vmap(lambda c, s: group_scaled.values(x.shape[1], c, s, coding))(codes, scale)
    return lax.ragged_dot(x.astype(jnp.float32), W, sizes, precision="highest")


def _forward(
    x: jax.Array,
    codes: jax.Array,
    scale: jax.Array,
    sizes: jax.Array,
    coding: Coding,
    tiling: Blocks | None,
    scaled: str | None,
    interpret: Any,
) -> tuple[jax.Array, tuple]:
    return matmul(x, codes, scale, sizes, coding, tiling, scaled, interpret), (x, codes, scale, sizes)


def _backward(
    coding: Coding, tiling: Blocks | None, scaled: str | None, interpret: Any, kept: tuple, dy: jax.Array
) -> tuple:
    x, codes, scale, sizes = kept
    none = (np.zeros(codes.shape, jax.dtypes.float0), np.zeros(sizes.shape, jax.dtypes.float0))
    if scale.dtype.itemsize == 1:  # stored codes as well
        (dx,) = jax.vjp(lambda x: reference(x, codes, scale, sizes, coding), x)[1](dy)
        return dx, none[0], None, none[1]
    dx, d_scale = jax.vjp(lambda x, scale: reference(x, codes, scale, sizes, coding), x, scale)[1](dy)
    return dx, none[0], d_scale, none[1]


matmul.defvjp(_forward, _backward)
