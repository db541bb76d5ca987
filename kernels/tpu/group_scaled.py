"""y = x @ W for bfloat16 x and W of int4 or int8 codes under scales of groups along K (W4A16 and W8A16), on TPUs.

Codes become bfloat16 on their way from the vector memory to the matrix unit, exactly, and products are summed in
float32. Scales meet either the sums of a group (exact; best for few rows of x, where the sums are small) or the codes,
rounding each weight to bfloat16 once (best for many rows, where a group's sums are larger than its weights).
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from qjax.kernels.tpu import streamed, tiles
from qjax.kernels.tpu.tiles import FEW, LANES, Blocks

ROWS = {4: 64, 8: 32}  # rows of int4 and int8 codes in one tile of registers: groups come in multiples
DEFAULTS = {"sums": Blocks(512, 1024, 4096), "codes": Blocks(512, 1024, 2048)}  # where the table has nothing
RING = 12 << 20  # bytes of weights in vector memory when blocks are copied by hand; 16 MiB is the least a chip allows


def refuse(K: int, N: int, group: int, bits: int) -> str | None:
    """Why the kernel cannot run codes [K, N] of 4 or 8 bits in groups of `group`, or None."""
    if N % LANES:
        return f"{N} outputs are no multiple of {LANES}"
    if group % ROWS[bits]:
        return f"groups of {group} are no multiple of {ROWS[bits]}, the rows of int{bits} in a register tile"
    return None


def formulation(M: int) -> str:
    """What scales meet where it is not said: the sums of few rows, the codes under many."""
    return "sums" if M <= FEW else "codes"


def blocks(
    M: int, K: int, N: int, group: int, bits: int = 4, scaled: str | None = None, chip: str | None = None
) -> Blocks:
    """The blocks taken where none are given: the table's for the chip, or defaults, cut to divide the shape."""
    scaled = formulation(M) if scaled is None else scaled
    most = tiles.largest(f"w{bits}a16 {scaled}", M, chip) or DEFAULTS[scaled]
    if most.buffers > 2:
        fitting = RING * 8 // bits // (most.buffers * K)
        columns = tiles.divisor(N, min(most.columns, fitting), LANES)
        if columns is not None and most.rows >= M:
            return Blocks(-(-M // 16) * 16, columns, K, most.buffers)
        most = DEFAULTS[scaled]
    # A block holds all scales of the axis or a multiple of eight rows of them, a register tile.
    depth = tiles.divisor(K, most.depth, 8 * group) or K
    columns = tiles.divisor(N, min(most.columns, most.columns * most.depth // depth), LANES) or LANES
    return Blocks(min(-(-M // 16) * 16, most.rows), columns, depth)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def matmul(
    x: jax.Array,
    codes: jax.Array,
    scale: jax.Array,
    tiling: Blocks | None = None,
    scaled: str | None = None,
    interpret: Any = False,
) -> jax.Array:
    """x [M, K] bfloat16 @ (codes [K, N] int4 or int8 * scale [G, N] repeated K / G times) -> [M, N] float32.

    `scaled`: "sums" or "codes", by the number of rows where None. M is padded to whole blocks; `tiling` must divide K
    and N; `interpret` goes to `pallas_call`. Gradients reach x and scale and are those of `reference`. ValueError for
    shapes that do not fit.
    """
    (M, K), N, groups, bits = x.shape, codes.shape[1], scale.shape[0], jnp.iinfo(codes.dtype).bits
    group = K // groups
    why = refuse(K, N, group, bits)
    if codes.shape[0] != K or K % groups or scale.shape[1] != N or why is not None:
        raise ValueError(f"x {x.shape}, codes {codes.shape} and scale {scale.shape} do not fit: {why}")
    if M == 0:
        return jnp.zeros((0, N), jnp.float32)
    scaled = formulation(M) if scaled is None else scaled
    tiling = blocks(M, K, N, group, bits, scaled, tiles.chip()) if tiling is None else tiling
    bm, bn, bk, buffers = tiling
    if K % bk or N % bn or bk % group or (bk < K and bk // group % 8):
        raise ValueError(f"{tiling} do not divide {codes.shape} into whole groups of {group}, eight or all of them")
    rows = -(-M // bm) * bm
    x = jnp.pad(x.astype(jnp.bfloat16), [(0, rows - M), (0, 0)])
    if buffers > 2:
        if scaled != "sums" or bk < K or bm < rows:
            raise ValueError(
                f"{tiling}: more than two buffers are for scaled sums, all rows and the whole depth at once"
            )
        return streamed.matmul(x, codes, scale.astype(jnp.float32), tiling, interpret)[:M]
    grid = (rows // bm, N // bn, K // bk)
    call = pl.pallas_call(
        functools.partial(_kernel, group=group, scaled=scaled),
        out_shape=jax.ShapeDtypeStruct((rows, N), jnp.float32),
        grid=grid,
        in_specs=[
            pl.BlockSpec((bm, bk), lambda i, j, k: (i, k)),
            pl.BlockSpec((bk, bn), lambda i, j, k: (k, j)),
            pl.BlockSpec((bk // group, bn), lambda i, j, k: (k, j)),
        ],
        out_specs=pl.BlockSpec((bm, bn), lambda i, j, k: (i, j)),
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary")),
        name=f"w{bits}a16_{scaled}",
        interpret=interpret,
    )
    return call(x, codes, scale.astype(jnp.float32))[:M]


def _kernel(x_ref: Any, w_ref: Any, s_ref: Any, y_ref: Any, *, group: int, scaled: str) -> None:
    """One block: y += x @ W. The result stays in vector memory while k runs, so it is the sum itself."""

    @pl.when(pl.program_id(2) == 0)
    def _() -> None:
        y_ref[...] = jnp.zeros_like(y_ref)

    count = w_ref.shape[0] // group
    if scaled == "sums":
        total = y_ref[...]
        for g in range(count):  # bounded by the depth of a block
            rows = slice(g * group, (g + 1) * group)
            part = jnp.dot(x_ref[:, rows], w_ref[rows, :].astype(jnp.bfloat16), preferred_element_type=jnp.float32)
            total += part * s_ref[g : g + 1, :]
        y_ref[...] = total
    else:
        parts = [w_ref[g * group : (g + 1) * group, :].astype(jnp.float32) * s_ref[g : g + 1, :] for g in range(count)]
        w = jnp.concatenate([part.astype(jnp.bfloat16) for part in parts], axis=0)
        y_ref[...] += jnp.dot(x_ref[...], w, preferred_element_type=jnp.float32)


def reference(x: jax.Array, codes: jax.Array, scale: jax.Array) -> jax.Array:
    """What `matmul` computes, with the whole weight dequantized and everything in float32."""
    W = codes.astype(jnp.float32) * jnp.repeat(scale.astype(jnp.float32), codes.shape[0] // scale.shape[0], axis=0)
    return jnp.dot(x.astype(jnp.float32), W, precision="highest")


def _forward(
    x: jax.Array, codes: jax.Array, scale: jax.Array, tiling: Blocks | None, scaled: str | None, interpret: Any
) -> tuple[jax.Array, tuple]:
    return matmul(x, codes, scale, tiling, scaled, interpret), (x, codes, scale)


def _backward(tiling: Blocks | None, scaled: str | None, interpret: Any, kept: tuple, dy: jax.Array) -> tuple:
    x, codes, scale = kept
    dx, d_scale = jax.vjp(lambda x, scale: reference(x, codes, scale), x, scale)[1](dy)
    return dx, np.zeros(codes.shape, jax.dtypes.float0), d_scale


matmul.defvjp(_forward, _backward)
