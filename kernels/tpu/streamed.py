"""The group-scaled product for few rows of x, with the weight's blocks copied by hand and several of them under way.

Few rows are a matter of reading the weight. Pallas' own pipeline begins the copy of a block when the block before it
is there, so that each waits for the memory's latency once more; here a ring of buffers keeps the memory busy. The first
block is taken in pieces that double in width, so that the matrix unit begins early and the pauses between blocks,
when it runs empty, are few.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from qjax.kernels.tpu import block_scales, epilogues, spans
from qjax.kernels.tpu.codings import Coding
from qjax.kernels.tpu.tiles import LANES, Blocks

LIMIT = 48 << 20  # bytes of vector memory asked for: v5e, whose default is 16 MiB, has 128


def matmul(
    x: jax.Array,
    codes: jax.Array,
    scale: jax.Array,
    tiling: Blocks,
    coding: Coding,
    span: int,
    interpret: Any = False,
    tables: Sequence[jax.Array] = (),
    added: tuple[jax.Array, ...] = (),
) -> jax.Array:
    """`group_scaled.matmul` with scaled sums, where all of x and blocks of the whole depth fit.

    `group_scaled.matmul` checks the arguments; here x [copies M, K] bfloat16 is spread, M a multiple of 16, and scale
    is what `block_scales.handed` gave; tables is empty or has the one that `lookups.laid_out` gave, and added is empty
    or what `epilogues.handed` gave.
    """
    groups, N = scale.shape
    group = x.shape[1] // groups
    M = x.shape[0] // spans.copies(span, group)
    columns, buffers = tiling.columns, min(tiling.buffers, N // tiling.columns)
    parts = pieces(columns)
    memory = pl.BlockSpec(memory_space=pl.ANY)
    rows, across = (x, *added[:1]), (codes, scale, *added[1:])
    call = pl.pallas_call(
        functools.partial(_kernel, parts=parts, buffers=buffers, coding=coding, span=span),
        out_shape=jax.ShapeDtypeStruct((M, N), jnp.float32),
        in_specs=[
            (memory,) * len(rows),
            (memory,) * len(across),
            *(pl.BlockSpec(memory_space=pltpu.VMEM) for _ in tables),
        ],
        out_specs=memory,
        scratch_shapes=[
            tuple(pltpu.VMEM(array.shape, array.dtype) for array in rows),
            tuple(pltpu.VMEM((buffers, array.shape[0], columns), array.dtype) for array in across),
            pltpu.VMEM((buffers, M, columns), jnp.float32),
            pltpu.VMEM((groups, columns), jnp.float32),
            spans.room_for_levels(x.shape[1], x.shape[0], coding, span),
            pltpu.SemaphoreType.DMA((len(rows),)),
            pltpu.SemaphoreType.DMA((len(across), buffers + len(parts))),
            pltpu.SemaphoreType.DMA((buffers,)),
        ],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=LIMIT),
        name=f"{coding.name}_streamed",
        interpret=interpret,
    )
    return call(rows, across, *tables)


def pieces(columns: int) -> tuple[int, ...]:
    """Widths in which the first block is taken: multiples of a register's lanes, each as wide as all before it.

    >>> pieces(1024), pieces(768), pieces(384)
    ((256, 256, 512), (384, 384), (384,))
    """
    if columns % (4 * LANES) == 0:
        return columns // 4, columns // 4, columns // 2
    return (columns // 2, columns // 2) if columns % (2 * LANES) == 0 else (columns,)


def _kernel(
    rows_hbm: tuple,
    across_hbm: tuple,
    *others: Any,
    parts: tuple[int, ...],
    buffers: int,
    coding: Coding,
    span: int,
) -> None:
    """All of y: block i is in buffer i modulo `buffers` from the start of its copy to the end of its result's.

    The parts of the first have semaphores of their own, for they may arrive in any order.
    """
    *tables, y_hbm, rows_ref, across_ref, y_ref, room, levels, rows_done, across_done, y_done = others
    (x_ref, *t_ref), (w_ref, s_ref, *added_ref) = rows_ref, across_ref
    columns = w_ref.shape[-1]
    count = y_hbm.shape[1] // columns
    group = x_ref.shape[1] // s_ref.shape[1]

    def taken(i: Any, buffer: Any, done: Any, start: int = 0, width: int = columns) -> list[Any]:
        there, here = pl.ds(pl.multiple_of(i * columns + start, LANES), width), pl.ds(start, width)
        return [
            pltpu.make_async_copy(source.at[:, there], ring.at[buffer, :, here], across_done.at[n, done])
            for n, (source, ring) in enumerate(zip(across_hbm, across_ref, strict=True))
        ]

    def given(i: Any, buffer: Any) -> Any:
        there = pl.ds(pl.multiple_of(i * columns, LANES), columns)
        return pltpu.make_async_copy(y_ref.at[buffer], y_hbm.at[:, there], y_done.at[buffer])

    def under(column: Any, width: int) -> Coding:
        return coding.under(tables[0], pl.ds(pl.multiple_of(column, LANES), width)) if tables else coding

    def multiply(i: Any, buffer: Any, start: int, width: int) -> None:
        part = pl.ds(start, width)
        scale = block_scales.held(s_ref.at[buffer, :, part], room.at[:, part])
        for strip in spans.strips(width, span, group):
            here = slice(start + strip.start, start + strip.stop)
            added = (*t_ref, *(ring.at[buffer, :, here] for ring in added_ref))
            total = spans.scaled_sums(
                epilogues.begun((y_ref.shape[1], here.stop - here.start), *added),
                x_ref,
                levels,
                lambda rows, here=here: w_ref[buffer, rows, here],
                lambda g, strip=strip: scale[g : g + 1, strip],
                under(i * columns + here.start, here.stop - here.start),
                span,
                group,
            )
            total = epilogues.ended(total, *added) if epilogues.comes_last(added) else total
            y_ref[buffer, :, here] = total

    def step(i: Any, carry: None) -> None:
        """Block i: what may be copied next is, then its own copy is awaited."""
        buffer, after = lax.rem(i, buffers), i + buffers - 1

        @pl.when(after < count)
        def _() -> None:
            other = lax.rem(after, buffers)
            _start(taken(after, other, other))

        _wait(taken(i, buffer, buffer))

        @pl.when(i >= buffers)
        def _() -> None:
            given(i - buffers, buffer).wait()

        multiply(i, buffer, 0, columns)
        given(i, buffer).start()

    rows_copies = [
        pltpu.make_async_copy(source, ref, rows_done.at[n])
        for n, (source, ref) in enumerate(zip(rows_hbm, rows_ref, strict=True))
    ]
    _start(rows_copies)
    starts = [sum(parts[:p]) for p in range(len(parts))]
    first = [taken(0, 0, buffers + p, start, parts[p]) for p, start in enumerate(starts)]
    for piece in first:
        _start(piece)
    for i in range(1, min(buffers, count)):
        _start(taken(i, i, i))
    _wait(rows_copies)
    spans.fill_levels(x_ref, levels, coding, span)
    for piece, start, width in zip(first, starts, parts, strict=True):
        _wait(piece)
        multiply(0, 0, start, width)
    given(0, 0).start()
    lax.fori_loop(1, count, step, None)
    for i in range(max(count - buffers, 0), count):
        given(i, i % buffers).wait()


def _start(copies: Sequence[Any]) -> None:
    for copy in copies:
        copy.start()


def _wait(copies: Sequence[Any]) -> None:
    for copy in copies:
        copy.wait()
