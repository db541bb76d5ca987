"""y = x @ W for x and W of float4 or float8 under scales of blocks along K (NVFP4, MXFP4, MXFP8), on Blackwell GPUs.

The tensor core multiplies the codes and their scales itself (tcgen05.mma with block_scale) and sums in float32: nothing
is dequantized. Operands come by TMA, scales go on to the tensor memory, where the instruction reads them, and sums stay
there until the depth is done. Two blocks of threads share a multiprocessor: one waits, the other multiplies. Few
outputs and few rows leave most of a chip idle: the depth is then split over several blocks, as in `group_scaled`.

Nothing here was run on a chip. The kernel was compiled for sm_100a (`kernels.aot.gpu`), and interpreted, where there
are no scaled products: there operands are dequantized to bfloat16, which holds code times scale exactly.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from qjax.kernels.gpu.shared_memory import swizzled

ROWS = 128  # of either operand in one product, and of scales in one tile of them
BLOCKS = {"float8_e4m3fn": 16, "float8_e8m0fnu": 32}  # codes under one scale, by the type of the scales
PAIRS = (
    ("float4_e2m1fn", "float8_e4m3fn"),
    ("float4_e2m1fn", "float8_e8m0fnu"),
    ("float8_e4m3fn", "float8_e8m0fnu"),
)
SCALES = 4  # along K in one tile of them
BYTES = 128  # of a row of codes in shared memory, the widest swizzle
COLUMNS = 32  # of the result that leave at a time
RESIDENT = 296  # blocks on a B200 at a time: two on each of 148 multiprocessors


class Tiles(NamedTuple):
    """What a block of threads computes: [128, 128] of y over one of `splits` parts of the depth.

    It takes `step` codes of the depth at a time, and `buffers` such steps are in shared memory.
    """

    step: int
    buffers: int = 2
    splits: int = 1


def refuse(K: int, N: int, codes: Any, scale: Any) -> str | None:
    """Why the kernel cannot multiply codes [M, K] and [N, K] of one dtype under scales of another, or None."""
    pair = jnp.dtype(codes).name, jnp.dtype(scale).name
    if pair not in PAIRS:
        return f"no product takes {pair[0]} codes under {pair[1]} scales"
    if N % ROWS:
        return f"{N} outputs are no multiple of {ROWS}"
    tile = _least(scale)
    return f"{K} inputs are no multiple of {tile}, the codes of one tile of scales" if K % tile else None


def pack(scale: jax.Array) -> jax.Array:
    """Scales [R, K / block] of one operand as the tiles that go to the tensor memory: [R / 128, K / (4 block), 32, 16].

    Row r and block g lie in tile [r // 128, g // 4] at [r % 32, 4 (r % 128 // 32) + g % 4]: the layout that cuBLAS
    documents for scales of blocks in one dimension. Rows are padded to whole tiles with ones.
    """
    R, blocks = scale.shape
    rows = -(-R // ROWS) * ROWS
    scale = jnp.concatenate([scale, jnp.ones((rows - R, blocks), scale.dtype)])
    tiled = scale.reshape(rows // ROWS, 4, 32, blocks // SCALES, SCALES)
    return tiled.transpose(0, 3, 2, 1, 4).reshape(rows // ROWS, blocks // SCALES, 32, 4 * SCALES)


def packed_shape(R: int, K: int, scale: Any) -> tuple[int, int, int, int]:
    """The shape of packed scales of the given type for R rows of K codes."""
    return -(-R // ROWS), K // _least(scale), 32, 4 * SCALES


def unpack(packed: jax.Array) -> jax.Array:
    """The inverse of `pack`, padded rows included: scales [R, K / block]."""
    tiles, blocks = packed.shape[:2]
    tiled = packed.reshape(tiles, blocks, 32, 4, SCALES).transpose(0, 3, 2, 1, 4)
    return tiled.reshape(tiles * ROWS, blocks * SCALES)


def tiles(M: int, K: int, N: int, codes: Any, scale: Any) -> Tiles:
    """The tiles taken where none are given: the widest rows that divide K, and enough blocks to fill a chip.

    The depth is split while there is room for more blocks and each has four steps.

    >>> tiles(16, 4096, 4096, jnp.float4_e2m1fn, jnp.float8_e4m3fn)
    Tiles(step=256, buffers=2, splits=4)
    """
    step = BYTES * 8 // _bits(codes)
    while K % step or step > K:
        step //= 2
    steps, blocks = K // step, N // ROWS * -(-M // ROWS)
    most = max(1, min(RESIDENT // blocks, steps // 4))
    splits = max(n for n in range(1, most + 1) if steps % n == 0)
    return Tiles(step, splits=splits)


def matmul(
    x: jax.Array,
    w: jax.Array,
    x_scale: jax.Array,
    w_scale: jax.Array,
    tiling: Tiles | None = None,
    interpret: Any = False,
) -> jax.Array:
    """(x [M, K] under x_scale) @ (w [N, K] under w_scale)^T -> [M, N] float32; scales from `pack`.

    Codes float4_e2m1fn under scales float8_e4m3fn of 16 or float8_e8m0fnu of 32 codes, or codes float8_e4m3fn under
    the latter. No scale may be negative: the tensor core reads them without a sign. A tensor scale, as NVFP4 has one,
    is a factor of the result. M is padded to whole tiles. `interpret`: an `InterpretGPUParams`. No gradients: both
    operands are codes. ValueError for what does not fit. Needs jax 0.12.
    """
    (M, K), N = x.shape, w.shape[0]
    why = _misfit(x, w, x_scale, w_scale)
    if why is not None:
        raise ValueError(
            f"x {x.shape} {x.dtype}, w {w.shape} {w.dtype}, scales {x_scale.shape} and {w_scale.shape} {x_scale.dtype}"
            f" do not fit: {why}"
        )
    if M == 0:
        return jnp.zeros((0, N), jnp.float32)
    tiling = tiles(M, K, N, x.dtype, x_scale.dtype) if tiling is None else tiling
    step, _, splits = tiling
    if K % (step * splits) or step % _least(x_scale.dtype):
        raise ValueError(f"{tiling} do not divide {K} codes into whole tiles of scales")
    padded = -(-M // ROWS) * ROWS
    x = jnp.concatenate([x, jnp.zeros((padded - M, K), x.dtype)])
    scratch = {
        "sums": plgpu.TMEM((ROWS, ROWS), jnp.float32),
        "done": plgpu.Barrier(orders_tensor_core=True),
        "leaving": plgpu.SMEM((ROWS, COLUMNS), jnp.float32, transforms=swizzled(COLUMNS, 32)),
    }
    side = (
        plgpu.SMEM((ROWS, step), jnp.bfloat16, transforms=swizzled(64, 16))
        if interpret
        else plgpu.TMEM(
            (ROWS, SCALES * step // _least(x_scale.dtype)), x_scale.dtype, layout=plgpu.TMEMLayout.SCALES_LAYOUT
        )
    )
    call = plgpu.kernel(
        functools.partial(_kernel, tiling=tiling, interpret=bool(interpret)),
        out_type=jax.ShapeDtypeStruct((splits, padded, N), jnp.float32),
        grid=(N // ROWS, padded // ROWS, splits),
        grid_names=("outputs", "rows", "splits"),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        scratch_types=scratch | {"x_side": side, "w_side": side},
        interpret=interpret,
    )
    return call(x, w, x_scale, w_scale).sum(0)[:M]


def _kernel(
    x: Any,
    w: Any,
    x_scale: Any,
    w_scale: Any,
    y: Any,
    *,
    sums: Any,
    done: Any,
    leaving: Any,
    x_side: Any,
    w_side: Any,
    tiling: Tiles,
    interpret: bool,
) -> None:
    """One block: a tile of y, summed in the tensor memory, which leaves by columns."""
    step, buffers, splits = tiling
    i, j, part = lax.axis_index("rows"), lax.axis_index("outputs"), lax.axis_index("splits")
    steps = x.shape[1] // step // splits
    first = part * steps

    def body(index: Any, x_s: Any, w_s: Any, x_scale_s: Any, w_scale_s: Any) -> None:
        accumulate = index[0] > 0
        if interpret:
            x_side[...] = _dequantized(x_s[...], x_scale_s[...])
            w_side[...] = _dequantized(w_s[...], w_scale_s[...])
            plgpu.commit_smem()
            plgpu.tcgen05_mma(sums, x_side, w_side.T, done, accumulate=accumulate)
        else:
            plgpu.async_copy_scales_to_tmem(x_scale_s, x_side)
            plgpu.async_copy_scales_to_tmem(w_scale_s, w_side)
            plgpu.tcgen05_mma(sums, x_s, w_s.T, done, a_scale=x_side, b_scale=w_side, accumulate=accumulate)
        plgpu.barrier_wait(done)

    codes, bits = (ROWS, step), _bits(x.dtype)
    scales = (1, step // (x.shape[1] // x_scale.shape[1]), 32, 4 * SCALES)
    plgpu.emit_pipeline(
        body,
        grid=(steps,),
        in_specs=[
            plgpu.BlockSpec(codes, lambda k: (i, first + k), transforms=swizzled(step, bits)),
            plgpu.BlockSpec(codes, lambda k: (j, first + k), transforms=swizzled(step, bits)),
            plgpu.BlockSpec(scales, lambda k: (i, first + k, 0, 0)),
            plgpu.BlockSpec(scales, lambda k: (j, first + k, 0, 0)),
        ],
        max_concurrent_steps=buffers,
    )(x, w, x_scale, w_scale)
    for column in range(0, ROWS, COLUMNS):
        leaving[...] = plgpu.async_load_tmem(sums.at[:, pl.ds(column, COLUMNS)])
        plgpu.commit_smem()
        plgpu.copy_smem_to_gmem(leaving, y.at[part, pl.ds(i * ROWS, ROWS), pl.ds(j * ROWS + column, COLUMNS)])
        plgpu.wait_smem_to_gmem(0)


def reference(x: jax.Array, w: jax.Array, x_scale: jax.Array, w_scale: jax.Array) -> jax.Array:
    """What `matmul` computes, with both operands dequantized and everything in float32."""
    left, right = (
        codes.astype(jnp.float32) * _spread(scale)[: codes.shape[0]] for codes, scale in ((x, x_scale), (w, w_scale))
    )
    return jnp.dot(left, right.T, precision="highest")


def _dequantized(codes: jax.Array, scale: jax.Array) -> jax.Array:
    """One step of an operand as bfloat16, exactly: at most four bits of a code times four of its scale."""
    return (codes.astype(jnp.float32) * _spread(scale)).astype(jnp.bfloat16)


def _spread(packed: jax.Array) -> jax.Array:
    """Packed scales as a float32 a code."""
    return jnp.repeat(unpack(packed).astype(jnp.float32), BLOCKS[packed.dtype.name], axis=1)


def _misfit(x: jax.Array, w: jax.Array, x_scale: jax.Array, w_scale: jax.Array) -> str | None:
    """Why they cannot be multiplied, or None."""
    (M, K), N = x.shape, w.shape[0]
    if (w.dtype, w_scale.dtype, w.shape[1]) != (x.dtype, x_scale.dtype, K):
        return "both operands have one depth, one type of codes and one of scales"
    why = refuse(K, N, x.dtype, x_scale.dtype)
    if why is not None:
        return why
    expected = packed_shape(M, K, x_scale.dtype), packed_shape(N, K, x_scale.dtype)
    if (x_scale.shape, w_scale.shape) != expected:
        return f"scales are to be {expected[0]} and {expected[1]}"
    return None


def _bits(codes: Any) -> int:
    return 4 if jnp.dtype(codes).name == "float4_e2m1fn" else 8


def _least(scale: Any) -> int:
    """Codes along K in one tile of scales."""
    return SCALES * BLOCKS[jnp.dtype(scale).name]
