"""y = (x codes @ w codes) * row scales * column scales, for integers of 8 or of 4 bits (W8A8, W4A4), on TPUs.

The matrix unit multiplies the codes and sums them in int32, exactly; scales meet the finished sums. Before v5 there is
no such unit and the compiler refuses; on 7x it makes do with bfloat16.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

from qjax.kernels.aot.chips import CHIPS
from qjax.kernels.tpu import tiles
from qjax.kernels.tpu.tiles import FEW, LANES, Blocks

ROWS = {4: 64, 8: 32}  # of int4 and int8 codes in one tile of registers
DEEP = 4096  # depth of the table's blocks, for which the compiler's own limit of vector memory is enough
LIMIT = 48 << 20  # bytes of vector memory asked for beyond it; every chip that multiplies int8 has 64 MiB or more
ROOM = 44 << 20  # of them, for blocks


def refuse(K: int, N: int, bits: int, chip: str | None = None) -> str | None:
    """Why the kernel cannot run codes [M, K] and [K, N] of 4 or 8 bits, on a chip (None: not known), or None."""
    if chip == "v4":
        return "TPU v4 has no products of integers"
    if N % LANES:
        return f"{N} outputs are no multiple of {LANES}"
    if K % LANES:
        return f"{K} inputs are no multiple of {LANES}"
    if K * 4 ** (bits - 1) >= 2**31:
        return f"the sum of {K} products of int{bits} may overflow int32"
    return None


def prefer(M: int, chip: str | None) -> bool:
    """Whether M rows come sooner by the kernel than by XLA's product (`reference`), by libtpu's estimates.

    Not on 7x, where 16 rows and a weight of 4096 x 4096 take XLA 11025 cycles and the kernel 14694, 512 rows 38565 and
    40163, 2048 rows 146674 and 149421; nor few rows on v6e, 18270 and 18887 (`experiments.benchmarks.kernels --peers`).
    """
    return chip != "7x" and (chip != "v6e" or M > FEW)


def blocks(M: int, K: int, N: int, bits: int, chip: str | None = None) -> Blocks:
    """The blocks taken where none are given: the table's for the chip, but as deep as fits, that few sums are moved."""
    default = Blocks(512, 1024 if M <= FEW else 512, 4096)
    most = tiles.largest(f"w{bits}a{bits}", M, chip) or default
    rows, columns = min(-(-M // ROWS[bits]) * ROWS[bits], most.rows), tiles.divisor(N, most.columns, LANES) or LANES
    copies = 2 * (rows + columns) * K * bits // 8 + 2 * rows * columns * 4  # two of each block
    # 7x makes bfloat16 of codes first, which takes room as well.
    native = chip is not None and CHIPS[chip].int8 > CHIPS[chip].flops
    whole = native and M > FEW and copies <= ROOM
    return Blocks(rows, columns, K if whole else tiles.divisor(K, most.depth, LANES) or LANES)


def matmul(
    x: jax.Array,
    codes: jax.Array,
    x_scale: jax.Array,
    scale: jax.Array,
    tiling: Blocks | None = None,
    interpret: Any = False,
) -> jax.Array:
    """x [M, K] @ codes [K, N], both int8 or both int4, times x_scale [M] and scale [N] float32 -> [M, N] float32.

    M is padded to whole blocks; `tiling` must divide K and N; `interpret` goes to `pallas_call`. The sums are exact:
    only the two products with the scales round. ValueError for what does not fit.
    """
    (M, K), N, bits = x.shape, codes.shape[1], jnp.iinfo(codes.dtype).bits
    why = refuse(K, N, bits)
    shapes = codes.shape[0] == K and x_scale.shape == (M,) and scale.shape == (N,) and x.dtype == codes.dtype
    if not shapes or why is not None:
        raise ValueError(
            f"x {x.shape} {x.dtype}, codes {codes.shape} {codes.dtype}, scales {x_scale.shape} and {scale.shape} do not"
            f" fit: {why}"
        )
    if M == 0:
        return jnp.zeros((0, N), jnp.float32)
    bm, bn, bk, _ = blocks(M, K, N, bits, tiles.chip()) if tiling is None else tiling
    if K % bk or N % bn:
        raise ValueError(f"blocks of depth {bk} and {bn} columns do not divide {codes.shape}")
    rows = -(-M // bm) * bm
    x = jnp.pad(x, [(0, rows - M), (0, 0)])
    x_scale = jnp.pad(x_scale.astype(jnp.float32), (0, rows - M))
    call = pl.pallas_call(
        functools.partial(_kernel, dtype=jnp.int8 if interpret else codes.dtype),
        out_shape=jax.ShapeDtypeStruct((rows, N), jnp.float32),
        grid=(rows // bm, N // bn, K // bk),
        in_specs=[
            pl.BlockSpec((bm, bk), lambda i, j, k: (i, k)),
            pl.BlockSpec((bk, bn), lambda i, j, k: (k, j)),
            pl.BlockSpec((bm, 1), lambda i, j, k: (i, 0)),
            pl.BlockSpec((1, bn), lambda i, j, k: (0, j)),
        ],
        out_specs=pl.BlockSpec((bm, bn), lambda i, j, k: (i, j)),
        scratch_shapes=[pltpu.VMEM((bm, bn), jnp.int32)],
        compiler_params=pltpu.CompilerParams(
            dimension_semantics=("parallel", "parallel", "arbitrary"),
            vmem_limit_bytes=LIMIT if bk > DEEP else None,  # on 7x a larger limit alone makes few rows slower
        ),
        name=f"w{bits}a{bits}",
        interpret=interpret,
    )
    return call(x, codes, x_scale[:, None], scale.astype(jnp.float32)[None, :])[:M]


def _kernel(x_ref: Any, w_ref: Any, x_scale_ref: Any, scale_ref: Any, y_ref: Any, sums_ref: Any, *, dtype: Any) -> None:
    """One block: sums of codes stay in vector memory while k runs."""
    k = pl.program_id(2)

    @pl.when(k == 0)
    def _() -> None:
        sums_ref[...] = jnp.zeros_like(sums_ref)

    # XLA:CPU, where kernels are interpreted, has no product of int4.
    left, right = x_ref[...].astype(dtype), w_ref[...].astype(dtype)
    sums_ref[...] += jnp.dot(left, right, preferred_element_type=jnp.int32)

    @pl.when(k == pl.num_programs(2) - 1)
    def _() -> None:
        y_ref[...] = sums_ref[...].astype(jnp.float32) * x_scale_ref[...] * scale_ref[...]


def reference(x: jax.Array, codes: jax.Array, x_scale: jax.Array, scale: jax.Array) -> jax.Array:
    """What `matmul` computes, by XLA."""
    sums = jnp.dot(x.astype(jnp.int8), codes.astype(jnp.int8), preferred_element_type=jnp.int32)
    return sums.astype(jnp.float32) * x_scale.astype(jnp.float32)[:, None] * scale.astype(jnp.float32)[None, :]
