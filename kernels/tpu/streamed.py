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

from qjax.kernels.tpu import block_scales, spans
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
) -> jax.Array:
    """`group_scaled.matmul` with scaled sums, where all of x and blocks of the whole depth fit.

    `group_scaled.matmul` checks the arguments; here x [copies M, K] bfloat16 is spread, M a multiple of 16, and scale
    is what `block_scales.handed` gave; tables is empty or has the one that `lookups.laid_out` gave.
    """
    groups, N = scale.shape
    group = x.shape[1] // groups
    M = x.shape[0] // spans.copies(span, group)
    columns, buffers = tiling.columns, min(tiling.buffers, N // tiling.columns)
    parts = pieces(columns)
    memory = pl.BlockSpec(memory_space=pl.ANY)
    call = pl.pallas_call(
        functools.partial(_kernel, parts=parts, buffers=buffers, coding=coding, span=span),
        out_shape=jax.ShapeDtypeStruct((M, N), jnp.float32),
        in_specs=[memory, memory, memory, *(pl.BlockSpec(memory_space=pltpu.VMEM) for _ in tables)],
        out_specs=memory,
        scratch_shapes=[
            pltpu.VMEM(x.shape, x.dtype),
            pltpu.VMEM((buffers, codes.shape[0], columns), codes.dtype),
            pltpu.VMEM((buffers, groups, columns), scale.dtype),
            pltpu.VMEM((buffers, M, columns), jnp.float32),
            pltpu.VMEM((groups, columns), jnp.float32),
            spans.room_for_levels(x.shape[1], x.shape[0], coding, span),
            pltpu.SemaphoreType.DMA((1,)),
            pltpu.SemaphoreType.DMA((buffers + len(parts),)),
            pltpu.SemaphoreType.DMA((buffers + len(parts),)),
            pltpu.SemaphoreType.DMA((buffers,)),
        ],
        compiler_params=pltpu.CompilerParams(vmem_limit_bytes=LIMIT),
        name=f"{coding.name}_streamed",
        interpret=interpret,
    )
    return call(x, codes, scale, *tables)


def pieces(columns: int) -> tuple[int, ...]:
    """Widths in which the first block is taken: multiples of a register's lanes, each as wide as all before it.

    >>> pieces(1024), pieces(768), pieces(384)
    ((256, 256, 512), (384, 384), (384,))
    """
    if columns % (4 * LANES) == 0:
        return columns // 4, columns // 4, columns // 2
    return (columns // 2, columns // 2) if columns % (2 * LANES) == 0 else (columns,)


def _kernel(
    x_hbm: Any,
    w_hbm: Any,
    s_hbm: Any,
    *others: Any,
    parts: tuple[int, ...],
    buffers: int,
    coding: Coding,
    span: int,
) -> None:
    """All of y: block i is in buffer i modulo `buffers` from the start of its copy to the end of its result's.

    The parts of the first have semaphores of their own, for they may arrive in any order.
    """
    *tables, y_hbm, x_ref, w_ref, s_ref, y_ref, room, levels, x_done, w_done, s_done, y_done = others
    columns = w_ref.shape[-1]
    count = w_hbm.shape[1] // columns
    group = x_ref.shape[1] // s_hbm.shape[0]

    def taken(i: Any, buffer: Any, done: Any, start: int = 0, width: int = columns) -> tuple[Any, Any]:
        there, here = pl.ds(pl.multiple_of(i * columns + start, LANES), width), pl.ds(start, width)
        return (
            pltpu.make_async_copy(w_hbm.at[:, there], w_ref.at[buffer, :, here], w_done.at[done]),
            pltpu.make_async_copy(s_hbm.at[:, there], s_ref.at[buffer, :, here], s_done.at[done]),
        )

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
            y_ref[buffer, :, here] = spans.scaled_sums(
                jnp.zeros((y_ref.shape[1], here.stop - here.start), jnp.float32),
                x_ref,
                levels,
                lambda rows, here=here: w_ref[buffer, rows, here],
                lambda g, strip=strip: scale[g : g + 1, strip],
                under(i * columns + here.start, here.stop - here.start),
                span,
                group,
            )

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

    x_copy = pltpu.make_async_copy(x_hbm, x_ref, x_done.at[0])
    x_copy.start()
    starts = [sum(parts[:p]) for p in range(len(parts))]
    first = [taken(0, 0, buffers + p, start, parts[p]) for p, start in enumerate(starts)]
    for piece in first:
        _start(piece)
    for i in range(1, min(buffers, count)):
        _start(taken(i, i, i))
    x_copy.wait()
    spans.fill_levels(x_ref, levels, coding, span)
    for piece, start, width in zip(first, starts, parts, strict=True):
        _wait(piece)
        multiply(0, 0, start, width)
    given(0, 0).start()
    lax.fori_loop(1, count, step, None)
    for i in range(max(count - buffers, 0), count):
        given(i, i % buffers).wait()


def _start(copies: tuple[Any, ...]) -> None:
    for copy in copies:
        copy.start()


def _wait(copies: tuple[Any, ...]) -> None:
    for copy in copies:
        copy.wait()
