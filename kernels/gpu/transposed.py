"""y^T = W^T @ x^T by WGMMA: how a product is cut into blocks, and the pipeline over the depth that each of them runs.

WGMMA takes 64 rows of its first operand and any multiple of 8 of its second: few rows of x are no waste when they are
the second. Few outputs and few rows leave most of a chip idle: the depth is then split over several blocks whose sums
are added up after.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

OUTPUTS = 64  # rows of W^T that one WGMMA takes
MULTIPROCESSORS = 132  # of an H100


class Tiles(NamedTuple):
    """What a block of threads computes: `outputs` x `rows` of y^T over one of `splits` parts of the depth.

    The pipeline takes `turn` steps of the depth at a time, and the input of `buffers` turns is in shared memory. One
    warpgroup copies and multiplies, or two divide the outputs between them and a third copies for both.
    """

    outputs: int
    rows: int
    buffers: int = 4
    splits: int = 1
    warpgroups: int = 1
    turn: int = 1


def refuse(K: int, N: int, group: int) -> str | None:
    """Why the kernel cannot run codes [K, N] in groups of `group`, or None."""
    if N % OUTPUTS:
        return f"{N} outputs are no multiple of {OUTPUTS}, the rows of one WGMMA"
    if group % 64 or K % group:
        return f"groups of {group} along {K} are no multiple of 64, the least depth of a step"
    return None


def depth(group: int) -> int:
    """Codes along K that one step takes: 128, or 64 where groups are odd multiples of that."""
    return 128 if group % 128 == 0 else 64


def tiles(M: int, K: int, N: int, group: int) -> Tiles:
    """The tiles taken where none are given, chosen by times on an H100: enough blocks to fill the chip, in one wave.

    More than 64 rows keep two warpgroups busy. The depth is split while there is room for more blocks, and while
    writing and reading the sums of all parts, eight bytes each, is no more than twice what the weight takes.

    One warpgroup under more than 16 rows takes two steps a turn, which halves what it spends on copies; that was
    chosen by counts of instructions, as much shared memory and as many blocks as before, and was not timed.

    >>> tiles(16, 4096, 4096, 128)
    Tiles(outputs=64, rows=16, buffers=4, splits=4, warpgroups=1, turn=1)
    >>> tiles(64, 4096, 4096, 128)
    Tiles(outputs=64, rows=64, buffers=2, splits=4, warpgroups=1, turn=2)
    >>> tiles(2048, 4096, 4096, 128)
    Tiles(outputs=128, rows=128, buffers=4, splits=1, warpgroups=2, turn=1)
    """
    rows = -(-M // 8) * 8 if M <= 64 else 128
    parts = -(-M // rows)
    wide = N % (2 * OUTPUTS) == 0 and (M > 64 or N // (2 * OUTPUTS) >= MULTIPROCESSORS)
    outputs = 2 * OUTPUTS if wide else OUTPUTS
    warpgroups = 2 if wide and M > 64 else 1
    room = MULTIPROCESSORS * (1 if warpgroups == 2 else 2) // (N // outputs * parts)
    step = depth(group)
    steps = K // step
    most = max(1, min(room, K // (8 * rows * parts)))
    splits = max(n for n in range(1, most + 1) if steps % n == 0)
    if 16 < M <= 64 and not wide and steps % (4 * splits) == 0 and (group == step or group % (2 * step) == 0):
        return Tiles(outputs, rows, 2, splits, warpgroups, 2)
    return Tiles(outputs, rows, 4 if wide or rows <= 64 else 3, splits, warpgroups)


def call(
    kernel: Callable[..., None],
    tiling: Tiles,
    M: int,
    w: jax.Array,
    dtype: Any,
    scratch: Sequence[Any] = (),
    interpret: Any = False,
) -> Callable[..., jax.Array]:
    """The kernel for M rows of x, a multiple of those of a tile, and w [steps, N, ...]: [splits, M, N] of dtype.

    ValueError for tiles that do not divide what they cut.
    """
    (steps, N), (outputs, rows, _, splits, warpgroups, turn) = w.shape[:2], tiling
    if warpgroups not in (1, 2):  # more wait for registers that no one returns
        raise ValueError(f"{tiling}: one warpgroup multiplies or two do")
    if N % outputs or outputs % (OUTPUTS * warpgroups) or rows % 8 or steps % (splits * turn):
        raise ValueError(f"{tiling} do not divide a weight {w.shape}")
    return plgpu.kernel(
        kernel,
        out_type=jax.ShapeDtypeStruct((splits, M, N), dtype),
        grid=(N // outputs, M // rows, splits),
        grid_names=("outputs", "rows", "splits"),
        **({} if warpgroups == 1 else {"num_threads": warpgroups + 1, "thread_name": "warpgroup"}),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        scratch_types=list(scratch),
        interpret=interpret,
    )


class Place(NamedTuple):
    """Where a block of threads is: its tile of y^T, its part of the depth, and the outputs of its warpgroup."""

    i: Any  # of the tiles of outputs
    j: Any  # of the tiles of rows
    part: Any
    first: Any  # turn of the part
    mine: Any  # outputs of the tile that this warpgroup computes


def place(tiling: Tiles, steps: int) -> Place:
    """That of this block, within its kernel."""
    part, own = lax.axis_index("splits"), tiling.outputs // tiling.warpgroups
    start = 0 if tiling.warpgroups == 1 else lax.axis_index("warpgroup") * own
    return Place(
        lax.axis_index("outputs"),
        lax.axis_index("rows"),
        part,
        part * (steps // tiling.splits // tiling.turn),
        pl.ds(start, own),
    )


def run(
    body: Callable[..., jax.Array],
    finish: Callable[[jax.Array], jax.Array],
    y: Any,
    where: Place,
    tiling: Tiles,
    sums: Any,
    specs: Sequence[Any],
    operands: Sequence[Any],
) -> None:
    """`body` on the operands' blocks of one step after another, then `finish` on its total, which is written to y.

    body : (indices, *blocks in shared memory, total [own outputs, rows] of the type `sums`) -> the next total
    """
    outputs, rows, buffers, _, warpgroups, turn = tiling
    own = outputs // warpgroups

    def compute(steps: Any) -> None:
        total = steps(plgpu.layout_cast(jnp.zeros((own, rows), sums), plgpu.Layout.WGMMA))
        total = plgpu.layout_cast(finish(total).astype(y.dtype), plgpu.Layout.WGMMA_TRANSPOSED)
        across = pl.ds(where.i * outputs + where.mine.start, own)
        y.at[where.part, pl.ds(where.j * rows, rows), across].T[...] = total

    emit = functools.partial(
        plgpu.emit_pipeline if warpgroups == 1 else plgpu.emit_pipeline_warp_specialized,
        body,
        grid=(operands[0].shape[0] // tiling.splits // turn,),
        in_specs=specs,
        max_concurrent_steps=buffers,
    )
    if warpgroups == 1:
        compute(lambda total: emit(init_carry=total)(*operands))
    else:
        emit(memory_registers=40, wg_axis="warpgroup", num_compute_wgs=warpgroups, compute_context=compute)(*operands)
