"""y = x @ W for bfloat16 x and W of int4 codes under scales of groups along K (W4A16), on Hopper GPUs.

The product is taken transposed, W^T @ x^T: WGMMA reads its first operand from registers, so that codes become bfloat16
there and never return to shared memory. `pack` puts eight codes in a word so that one mask and one exclusive or give a
pair of them, biased by 136, in a register of the operand as it is (the bit trick of Kim et al. 2022, arXiv:2211.10017,
in an order of codes that needs no exchange between lanes); one subtraction of pairs takes the bias away, exactly. The
sums of a group meet its scale in float32, so no weight is rounded. Few outputs and few rows leave most of a chip idle:
the depth is then split over several blocks whose sums are added up after.

On an H100 its results are exact where sums are, and with few rows it takes 0.3 to 0.6 of the time of a bfloat16
product (docs/kernels.md). Elsewhere it is compiled for sm_90a (`kernels.aot.gpu`), and interpreted, where registers
cannot be: there the operand goes through shared memory and pairs are taken apart by a plain cast of the words.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from qjax.kernels.gpu.shared_memory import swizzled

OUTPUTS = 64  # rows of W^T that one WGMMA takes
LANES = 8  # codes in a word
MULTIPROCESSORS = 132  # of an H100


class Tiles(NamedTuple):
    """What a block of threads computes: `outputs` x `rows` of y^T over one of `splits` parts of the depth.

    `buffers` of its input are in shared memory at a time. One warpgroup copies and multiplies, or two divide the
    outputs between them and a third copies for both.
    """

    outputs: int
    rows: int
    buffers: int = 4
    splits: int = 1
    warpgroups: int = 1


def refuse(K: int, N: int, group: int) -> str | None:
    """Why the kernel cannot run four-bit codes [K, N] in groups of `group`, or None."""
    if N % OUTPUTS:
        return f"{N} outputs are no multiple of {OUTPUTS}, the rows of one WGMMA"
    if group % 64 or K % group:
        return f"groups of {group} along {K} are no multiple of 64, the least depth of a step"
    return None


def depth(group: int) -> int:
    """Codes along K that one step takes: 128, or 64 where groups are odd multiples of that."""
    return 128 if group % 128 == 0 else 64


def pack(codes: jax.Array, step: int) -> jax.Array:
    """Integer codes [..., K, N] within -8..7 as int32 words [..., K / step, N, step / 8]; step 64 or 128, `depth`.

    Nibble i < 4 of word j holds code 2 (j + i step / 8) of its step, nibble i + 4 the code after it.
    """
    *batch, K, N = codes.shape
    nibbles = (codes.astype(jnp.int32) & 15).reshape(*batch, K // step, 4, step // LANES, 2, N)
    return jnp.moveaxis((nibbles << _shifts(nibbles.shape)).sum((-4, -2), dtype=jnp.int32), -2, -1)


def unpack(words: jax.Array, dtype: str) -> jax.Array:
    """The inverse of `pack`: codes [..., K, N] of the given dtype."""
    *batch, steps, N, count = words.shape
    shape = (*batch, steps, 4, count, 2, N)
    spread = jnp.broadcast_to(jnp.moveaxis(words, -1, -2)[..., None, :, None, :], shape)
    codes = ((spread >> _shifts(shape) & 15) ^ 8) - 8
    return codes.astype(dtype).reshape(*batch, steps * count * LANES, N)


def _shifts(shape: tuple[int, ...]) -> jax.Array:
    """Where in its word every code of [..., 4, step / 8, 2, N] begins."""
    part, half = (lax.broadcasted_iota(jnp.int32, shape, len(shape) + axis) for axis in (-4, -2))
    return 4 * part + 16 * half


def tiles(M: int, K: int, N: int, group: int) -> Tiles:
    """The tiles taken where none are given, chosen by times on an H100: enough blocks to fill the chip, in one wave.

    More than 64 rows keep two warpgroups busy. The depth is split while there is room for more blocks, and while
    writing and reading the sums of all parts, eight bytes each, is no more than twice what the weight takes.

    >>> tiles(16, 4096, 4096, 128)
    Tiles(outputs=64, rows=16, buffers=4, splits=4, warpgroups=1)
    >>> tiles(2048, 4096, 4096, 128)
    Tiles(outputs=128, rows=128, buffers=4, splits=1, warpgroups=2)
    """
    rows = -(-M // 8) * 8 if M <= 64 else 128
    parts = -(-M // rows)
    wide = N % (2 * OUTPUTS) == 0 and (M > 64 or N // (2 * OUTPUTS) >= MULTIPROCESSORS)
    outputs = 2 * OUTPUTS if wide else OUTPUTS
    warpgroups = 2 if wide and M > 64 else 1
    room = MULTIPROCESSORS * (1 if warpgroups == 2 else 2) // (N // outputs * parts)
    steps = K // depth(group)
    most = max(1, min(room, K // (8 * rows * parts)))
    splits = max(n for n in range(1, most + 1) if steps % n == 0)
    return Tiles(outputs, rows, 4 if wide or rows <= 64 else 3, splits, warpgroups)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def matmul(
    x: jax.Array,
    words: jax.Array,
    scale: jax.Array,
    tiling: Tiles | None = None,
    interpret: Any = False,
    dtype: Any = jnp.float32,
) -> jax.Array:
    """x [M, K] bfloat16 @ (codes [K, N] * scale [G, N] repeated K / G times) -> [M, N]; words from `pack`.

    Sums are float32 and rounded once, to dtype float32 or bfloat16. M is padded to whole tiles. `interpret`: an
    `InterpretGPUParams`. Gradients reach x and scale and are those of `reference`. ValueError for shapes that do not
    fit. Needs jax 0.12.
    """
    (M, K), (steps, N, count), groups = x.shape, words.shape, scale.shape[0]
    step, group = count * LANES, K // groups
    why = refuse(K, N, group)
    if steps * step != K or K % groups or scale.shape[1] != N or why is not None or step != depth(group):
        raise ValueError(f"x {x.shape}, words {words.shape} and scale {scale.shape} do not fit: {why}")
    if M == 0:
        return jnp.zeros((0, N), dtype)
    tiling = tiles(M, K, N, group) if tiling is None else tiling
    outputs, rows, _, splits, warpgroups = tiling
    if warpgroups not in (1, 2):  # more wait for registers that no one returns
        raise ValueError(f"{tiling}: one warpgroup multiplies or two do")
    if N % outputs or outputs % (OUTPUTS * warpgroups) or rows % 8 or steps % splits:
        raise ValueError(f"{tiling} do not divide words {words.shape}")
    padded = -(-M // rows) * rows
    x = jnp.pad(x.astype(jnp.bfloat16), [(0, padded - M), (0, 0)])
    call = plgpu.kernel(
        functools.partial(_kernel, tiling=tiling, steps_a_group=group // step, interpret=bool(interpret)),
        out_type=jax.ShapeDtypeStruct((splits, padded, N), dtype if splits == 1 else jnp.float32),
        grid=(N // outputs, padded // rows, splits),
        grid_names=("outputs", "rows", "splits"),
        **({} if warpgroups == 1 else {"num_threads": warpgroups + 1, "thread_name": "warpgroup"}),
        compiler_params=plgpu.CompilerParams(lowering_semantics=plgpu.LoweringSemantics.Warpgroup),
        scratch_types=[plgpu.SMEM((outputs, step), jnp.bfloat16)] if interpret else [],
        interpret=interpret,
    )
    parts = call(x, words, scale.astype(jnp.float32))
    return (parts[0] if splits == 1 else parts.sum(0).astype(dtype))[:M]


def _kernel(
    x: Any, words: Any, scale: Any, y: Any, *operand: Any, tiling: Tiles, steps_a_group: int, interpret: bool
) -> None:
    """One block: a tile of y^T, the sums of one step after another under the scales of their groups."""
    outputs, rows, buffers, splits, warpgroups = tiling
    steps, _, count = words.shape
    i, j, part = lax.axis_index("outputs"), lax.axis_index("rows"), lax.axis_index("splits")
    first = part * (steps // splits)
    own = outputs // warpgroups
    mine = pl.ds(0 if warpgroups == 1 else lax.axis_index("warpgroup") * own, own)

    def body(_: Any, words_s: Any, x_s: Any, scale_s: Any, total: jax.Array) -> jax.Array:
        codes = _codes(words_s[mine], interpret)
        if interpret:
            operand[0][mine] = codes

        def multiply(sums: Any) -> jax.Array:
            plgpu.wgmma(sums, operand[0].at[mine] if interpret else codes, x_s.T)
            return sums[...]

        sums = pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef((own, rows), jnp.float32))
        total += sums * lax.broadcast_in_dim(scale_s[0, mine], (own, rows), (0,))
        plgpu.commit_smem()  # what was read above is written by a copy next
        return total

    def compute(run: Any) -> None:
        total = run(plgpu.layout_cast(jnp.zeros((own, rows), jnp.float32), plgpu.Layout.WGMMA))
        total = plgpu.layout_cast(total.astype(y.dtype), plgpu.Layout.WGMMA_TRANSPOSED)
        y.at[part, pl.ds(j * rows, rows), pl.ds(i * outputs + mine.start, own)].T[...] = total

    emit = functools.partial(
        plgpu.emit_pipeline if warpgroups == 1 else plgpu.emit_pipeline_warp_specialized,
        body,
        grid=(steps // splits,),
        in_specs=[
            plgpu.BlockSpec((None, outputs, count), lambda k: (first + k, i, 0), transforms=swizzled(count, 32)),
            plgpu.BlockSpec((rows, count * LANES), lambda k: (j, first + k), transforms=swizzled(count * LANES, 16)),
            plgpu.BlockSpec((1, outputs), lambda k: ((first + k) // steps_a_group, i)),
        ],
        max_concurrent_steps=buffers,
    )
    if warpgroups == 1:
        compute(lambda total: emit(init_carry=total)(words, x, scale))
    else:
        emit(memory_registers=40, wg_axis="warpgroup", num_compute_wgs=warpgroups, compute_context=compute)(
            words, x, scale
        )


def _codes(words: jax.Array, interpret: bool) -> jax.Array:
    """Words [outputs, step / 8] as bfloat16 codes [outputs, step].

    A word shifted by 4 i holds two nibbles in the low bits of its halves. Under the exponent of 128 they count from
    there, and flipping their sign bits makes two's complement count from -8.
    """
    words = words if interpret else plgpu.layout_cast(words, _words_layout())
    pairs = [(((words >> 4 * i) if i else words) & 0x000F000F) ^ 0x43084308 for i in range(4)]
    biased = _halves(pairs) if interpret else _halves_in_registers(pairs)
    return biased - jnp.bfloat16(136)


def _halves(pairs: list[jax.Array]) -> jax.Array:
    """Int32 [outputs, n] each, as the bfloat16 pairs in their bits: [outputs, 2 n] each, side by side."""
    outputs, n = pairs[0].shape
    return jnp.concatenate([lax.bitcast_convert_type(p, jnp.bfloat16).reshape(outputs, 2 * n) for p in pairs], axis=1)


def _halves_in_registers(pairs: list[jax.Array]) -> jax.Array:
    """`_halves` for words in `_words_layout`, whose registers are those of WGMMA's operand: they change name alone."""
    from jax.experimental.mosaic import gpu as mgpu
    from jax.experimental.mosaic.gpu.utils import bitcast
    from jaxlib.mlir import ir

    outputs, n = pairs[0].shape
    wgmma = plgpu.Layout.WGMMA

    @plgpu.inline_mgpu(
        arg_types=(_words_layout(),) * len(pairs),
        return_type=plgpu.ShapeDtypeStruct((outputs, 2 * n * len(pairs)), jnp.dtype(jnp.bfloat16), layout=wgmma),
    )
    def rename(_: Any, *words: Any) -> Any:
        pair = ir.VectorType.get((2,), ir.BF16Type.get())
        shape = wgmma.to_mgpu().registers_shape((outputs, 2 * n))
        halves = [np.array([bitcast(r, pair) for r in w.registers.flat], object).reshape(shape) for w in words]
        return mgpu.FragmentedArray(_registers=np.concatenate(halves, 1), _layout=wgmma.to_mgpu(), _is_signed=None)

    return rename(*pairs)


def _words_layout() -> Any:
    """WGMMA's layout of 16-bit operands with a word for every pair: [64, 4] words lie as [64, 8] halves do."""
    tiling = plgpu.Tiling(((64, 4), (16, 4), (8, 4), (1,)))
    return plgpu.Layout.TILED(tiling, warp_dims=(-7,), lane_dims=(-3, -2), vector_dim=-1)


def reference(x: jax.Array, words: jax.Array, scale: jax.Array) -> jax.Array:
    """What `matmul` computes, with the whole weight dequantized and everything in float32."""
    W = unpack(words, "float32") * jnp.repeat(scale.astype(jnp.float32), x.shape[1] // scale.shape[0], axis=0)
    return jnp.dot(x.astype(jnp.float32), W, precision="highest")


def _forward(
    x: jax.Array, words: jax.Array, scale: jax.Array, tiling: Tiles | None, interpret: Any, dtype: Any
) -> tuple[jax.Array, tuple]:
    return matmul(x, words, scale, tiling, interpret, dtype), (x, words, scale)


def _backward(tiling: Tiles | None, interpret: Any, dtype: Any, kept: tuple, dy: jax.Array) -> tuple:
    x, words, scale = kept
    dx, d_scale = jax.vjp(lambda x, scale: reference(x, words, scale), x, scale)[1](dy.astype(jnp.float32))
    return dx, np.zeros(words.shape, jax.dtypes.float0), d_scale


matmul.defvjp(_forward, _backward)
