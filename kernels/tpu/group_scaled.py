"""y = x @ W for bfloat16 x and a weight of narrow codes under scales of groups along K, on TPUs.

Codes become what the matrix unit takes on their way from the vector memory (`codings`), exactly, and products are
summed in float32. Scales meet either the sums of a group (exact; best for few rows of x, where the sums are small) or
the codes, rounding each weight to bfloat16 once (best for many rows, where a group's sums are larger than its weights;
exact as well for codes of one mantissa bit under scales of at most six, as MXFP4's and NVFP4's are).

A unit is as deep as several short groups. Few rows of x are then spread over more, one for each group of a span, with
zeros where the others are: one product gives the sums of all of them.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from qjax.kernels.tpu import bfloat16_words, block_scales, codings, epilogues, lookups, spans, streamed, tiles
from qjax.kernels.tpu.codings import Coding
from qjax.kernels.tpu.epilogues import Epilogue
from qjax.kernels.tpu.tiles import FEW, LANES, Blocks

SUBLANES = 16  # rows of bfloat16 in one tile of registers
DEFAULTS = {"sums": Blocks(512, 1024, 4096), "codes": Blocks(512, 1024, 2048)}  # where the table has nothing
V4 = {"codes": Blocks(512, 512, 1024)}  # there, under many rows: 16 MiB have to hold the converted codes as well
RING = 12 << 20  # bytes of weights in vector memory when blocks are copied by hand; 16 MiB is the least a chip allows


def refuse(K: int, N: int, group: int, coding: Coding) -> str | None:
    """Why the kernel cannot run codes [K, N] in groups of `group`, or None."""
    if N % LANES:
        return f"{N} outputs are no multiple of {LANES}"
    if group % SUBLANES:
        return f"groups of {group} are no multiple of {SUBLANES}, the rows of bfloat16 in a register tile"
    if coding.span(K, group) is None:
        return f"groups of {group} in {K} rows do not fill whole tiles of {coding.tile * coding.packed} rows of codes"
    return None


def formulation(M: int, copies: int = 1) -> str:
    """What scales meet where it is not said: the sums of few rows of x, spread or not, the codes under many."""
    return "sums" if M <= FEW and _whole(M) * copies <= 2 * FEW else "codes"


def blocks(
    M: int, K: int, N: int, group: int, coding: Coding, scaled: str | None = None, chip: str | None = None
) -> Blocks:
    """The blocks taken where none are given: the table's for the chip, or defaults, cut to divide the shape."""
    _, most = _largest(M, K, group, coding, scaled, chip)
    if most.buffers > 2:
        fitting = RING * 8 // coding.bits // (most.buffers * K)
        columns = tiles.divisor(N, min(most.columns, fitting), LANES)
        if columns is not None and most.rows >= M:
            return Blocks(_whole(M), columns, K, most.buffers)
    return cut(M, K, N, group, coding, scaled, chip)


def cut(
    M: int, K: int, N: int, group: int, coding: Coding, scaled: str | None = None, chip: str | None = None
) -> Blocks:
    """`blocks` of which two are in vector memory at a time."""
    scaled, most = _largest(M, K, group, coding, scaled, chip)
    most = DEFAULTS[scaled] if most.buffers > 2 else most
    depth = tiles.divisor(K, most.depth, step(coding, group, _span(coding, K, group))) or K
    columns = tiles.divisor(N, min(most.columns, most.columns * most.depth // depth), LANES) or LANES
    return Blocks(min(_whole(M), most.rows), columns, depth)


def _largest(M: int, K: int, group: int, coding: Coding, scaled: str | None, chip: str | None) -> tuple[str, Blocks]:
    """The formulation, and its largest blocks."""
    if scaled is None:
        scaled = coding.scaled or formulation(M, spans.copies(_span(coding, K, group), group))
    default = (DEFAULTS | V4 if chip == "v4" and M > FEW else DEFAULTS)[scaled]
    return scaled, tiles.largest(f"{coding.name} {scaled}", M, chip) or default


def _whole(M: int) -> int:
    """Rows of x with those that fill up a tile of registers."""
    return -(-M // SUBLANES) * SUBLANES


def _span(coding: Coding, K: int, group: int) -> int:
    span = coding.span(K, group)
    assert span is not None  # refused before
    return span


def step(coding: Coding, group: int, span: int) -> int:
    """What the depth of a block is a multiple of: whole spans, and eight groups, a register tile of scales."""
    return math.lcm(8 * group, coding.packed * span)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def matmul(
    x: jax.Array,
    codes: jax.Array,
    scale: jax.Array,
    coding: Coding,
    tiling: Blocks | None = None,
    scaled: str | None = None,
    interpret: Any = False,
    table: jax.Array | None = None,
    epilogue: Epilogue | None = None,
) -> jax.Array:
    """x [M, K] bfloat16 @ (values of codes [K, N] * scale [G, N] repeated K / G times) -> [M, N] float32.

    codes: [K / packed, N] as `coding` has them. scale: a float; E4M3 and E8M0 are read as they are stored. `scaled`:
    "sums" or "codes", by the number of rows where None. M is padded to whole blocks, K and N are multiples of those of
    `tiling`; `interpret` goes to `pallas_call`. Gradients reach x, the arrays of `epilogue`, and scale unless it has a
    byte, and are those of `reference`. ValueError for shapes that do not fit.
    epilogue: what is added to the product in the same kernel, and what it is multiplied by before that.

    table: for a coding with a `lookup`, the float32 values of its codes, [16, 1] for all columns or [16, N], rounded to
    bfloat16 as x is: within 2^-9, what a weight loses that is dequantized for x of this type. It has no gradient. Where
    it is looked up by bytes, an infinite entry of x may give NaN, for it meets two halves.

    The `factor` f of a coding is taken from what scales do not meet, x for sums, or else from the scales: entries of x,
    or scales, beyond 2^127 f count as infinite. Its `above` is taken off the sums, in float32, or off the codes.
    """
    (M, K), (groups, N) = x.shape, scale.shape
    group = K // groups
    why = refuse(K, N, group, coding)
    if codes.shape != (K // coding.packed, N) or codes.dtype != coding.dtype or K % groups or why is not None:
        raise ValueError(
            f"x {x.shape}, codes {codes.shape} {codes.dtype} as {coding.name} and scale {scale.shape} do not fit: {why}"
        )
    shapes = (None,) if coding.lookup is None else ((lookups.SIZE, 1), (lookups.SIZE, N))
    if (None if table is None else table.shape) not in shapes:
        raise ValueError(f"{coding.name} takes {'no table' if coding.lookup is None else f'a table [16, 1 or {N}]'}")
    why = None if epilogue is None else epilogues.misfit(epilogue, M, N)
    if why is not None:
        raise ValueError(f"the epilogue of x {x.shape} and codes {codes.shape} does not fit: {why}")
    if M == 0:
        return jnp.zeros((0, N), jnp.float32)
    if epilogue is not None and epilogue.b.shape[0] == 0:
        return _times(matmul(x, codes, scale, coding, tiling, scaled, interpret, table), epilogue.outer)
    span = _span(coding, K, group)
    scaled = scaled or coding.scaled or formulation(M, spans.copies(span, group))
    coding = codings.taken(coding, scaled, tiles.chip(), group)
    copies = spans.copies(span, group) if scaled == "sums" else 1
    tiling = blocks(M, K, N, group, coding, scaled, tiles.chip()) if tiling is None else tiling
    bm, bn, bk, buffers = tiling
    if K % bk or N % bn or (bk < K and bk % step(coding, group, span)):
        raise ValueError(f"{tiling} do not divide {codes.shape} into whole groups of {group}, eight or all of them")
    rows = -(-M // bm) * bm
    x = jnp.pad(x.astype(jnp.bfloat16), [(0, rows - M), (0, 0)])
    if scaled == "sums":
        x = spans.spread(x * jnp.bfloat16(1 / coding.factor), bm, span, group)
    x = bfloat16_words.in_order(x, coding.stride)
    scale = block_scales.handed(scale)
    tables, unit = (), None
    if table is not None and coding.lookup is not None:
        laid_out, unit = lookups.laid_out(jnp.asarray(table, jnp.float32), coding.lookup)
        tables = (laid_out,)
    added = () if epilogue is None else epilogues.handed(epilogue, rows, unit)
    unit = unit if epilogue is None else None  # it is handed
    if buffers > 2:
        if scaled != "sums" or bk < K or bm < rows:
            raise ValueError(
                f"{tiling}: more than two buffers are for scaled sums, all rows and the whole depth at once"
            )
        return _times(streamed.matmul(x, codes, scale, tiling, coding, span, interpret, tables, added)[:M], unit)
    call = pl.pallas_call(
        functools.partial(_block, scaled=scaled, coding=coding, span=span, group=group),
        out_shape=jax.ShapeDtypeStruct((rows, N), jnp.float32),
        grid=(rows // bm, N // bn, K // bk),
        in_specs=[
            epilogues.specs(added, pl.BlockSpec, bm, bn),
            pl.BlockSpec((bm * copies, bk), lambda i, j, k: (i, k)),
            pl.BlockSpec((bk // coding.packed, bn), lambda i, j, k: (k, j)),
            pl.BlockSpec((bk // group, bn), lambda i, j, k: (k, j)),
            *(_own_tables(laid_out, bn) for laid_out in tables),
        ],
        out_specs=pl.BlockSpec((bm, bn), lambda i, j, k: (i, j)),
        scratch_shapes=[
            pltpu.VMEM((bk // group, bn), jnp.float32),
            *([spans.room_for_levels(bk, bm * copies, coding, span)] if scaled == "sums" else []),
        ],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=epilogues.limit(added, bn * bk) if scaled == "codes" else None,
        ),
        name=f"{coding.name}_{scaled}",
        interpret=interpret,
    )
    return _times(call(added, x, codes, scale, *tables)[:M], unit)


def _times(y: jax.Array, unit: jax.Array | None) -> jax.Array:
    return y if unit is None else y * unit


def _own_tables(laid_out: jax.Array, columns: int) -> Any:
    """The tables of a block of columns: those that are for all, or its own."""
    rows, across = laid_out.shape
    if across == LANES:
        return pl.BlockSpec((rows, LANES), lambda i, j, k: (0, 0))
    return pl.BlockSpec((rows, columns), lambda i, j, k: (0, j))


def _block(added: tuple, *refs: Any, scaled: str, coding: Coding, span: int, group: int) -> None:
    body, k = sums if scaled == "sums" else rounded, pl.program_id(2)
    y_ref = refs[3 if coding.lookup is None else 4]

    @pl.when(k == 0)
    def _() -> None:
        y_ref[...] = epilogues.begun(y_ref.shape, *added)

    body(*refs, coding=coding, span=span, group=group)
    if epilogues.comes_last(added):

        @pl.when(k == pl.num_programs(2) - 1)
        def _() -> None:
            y_ref[...] = epilogues.ended(y_ref[...], *added)


def sums(x_ref: Any, w_ref: Any, s_ref: Any, *others: Any, coding: Coding, span: int, group: int) -> None:
    """One block: y += x @ W. The result stays in vector memory while k runs, so it is the sum itself."""
    *tables, y_ref, room, levels = others
    scale = block_scales.held(s_ref, room)
    spans.fill_levels(x_ref, levels, coding, span)
    for here in spans.strips(y_ref.shape[1], span, group):
        y_ref[:, here] = spans.scaled_sums(
            y_ref[:, here],
            x_ref,
            levels,
            lambda rows, here=here: w_ref[rows, here],
            lambda g, here=here: scale[g : g + 1, here],
            coding.under(tables[0], here) if tables else coding,
            span,
            group,
        )


def rounded(x_ref: Any, w_ref: Any, s_ref: Any, *others: Any, coding: Coding, span: int, group: int) -> None:
    """The same with the weights of a block scaled and rounded before they are multiplied."""
    *tables, y_ref, room = others
    coding = coding.under(tables[0], slice(None)) if tables else coding
    scale = block_scales.held(s_ref, room, coding.factor)
    length = min(span, group)
    parts = []
    for stored in range(0, w_ref.shape[0], span):
        for w in coding.operands(w_ref[stored : stored + span, :]):
            values = w.astype(jnp.float32) - jnp.float32(coding.above * coding.factor)
            for start in range(0, span, length):
                g = (len(parts) * length) // group
                parts.append((values[start : start + length] * scale[g : g + 1, :]).astype(jnp.bfloat16))
    y_ref[...] += spans.product(x_ref[...], jnp.concatenate(parts, axis=0))


def reference(
    x: jax.Array,
    codes: jax.Array,
    scale: jax.Array,
    coding: Coding,
    table: jax.Array | None = None,
    epilogue: Epilogue | None = None,
) -> jax.Array:
    """What `matmul` computes, with the whole weight dequantized and everything in float32."""
    y = jnp.dot(x.astype(jnp.float32), values(x.shape[1], codes, scale, coding, table), precision="highest")
    return epilogues.reference(y, epilogue)


def values(K: int, codes: jax.Array, scale: jax.Array, coding: Coding, table: jax.Array | None = None) -> jax.Array:
    """The dequantized weight [K, N] float32."""
    groups = scale.shape[0]
    if coding.packed > 1:
        span = _span(coding, K, K // groups)
        codes = coding.restored(codes.reshape(-1, span, codes.shape[1]))
    decoded = coding.decode(codes) if table is None else coding.decode(codes, table)
    return decoded * jnp.repeat(scale.astype(jnp.float32), K // groups, axis=0)


def _forward(
    x: jax.Array,
    codes: jax.Array,
    scale: jax.Array,
    coding: Coding,
    tiling: Blocks | None,
    scaled: str | None,
    interpret: Any,
    table: jax.Array | None,
    epilogue: Epilogue | None,
) -> tuple[jax.Array, tuple]:
    kept = x, codes, scale, table, epilogue
    return matmul(x, codes, scale, coding, tiling, scaled, interpret, table, epilogue), kept


def _backward(
    coding: Coding, tiling: Blocks | None, scaled: str | None, interpret: Any, kept: tuple, dy: jax.Array
) -> tuple:
    x, codes, scale, table, epilogue = kept
    trained = (x, epilogue) if scale.dtype.itemsize == 1 else (x, epilogue, scale)  # a byte is a stored code as well

    def f(x: jax.Array, epilogue: Epilogue | None, scale: jax.Array = scale) -> jax.Array:
        return reference(x, codes, scale, coding, table, epilogue)

    dx, d_epilogue, *d_scale = jax.vjp(f, *trained)[1](dy)
    return dx, np.zeros(codes.shape, jax.dtypes.float0), d_scale[0] if d_scale else None, None, d_epilogue


matmul.defvjp(_forward, _backward)
