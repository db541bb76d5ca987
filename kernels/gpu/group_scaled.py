"""y = x @ W for bfloat16 x and W of narrow codes under scales of groups along K (W4A16, W8A16, E4M3), on Hopper GPUs.

The product is taken transposed, W^T @ x^T: WGMMA reads its first operand from registers, so that codes become bfloat16
there (`codings`) and never return to shared memory. The sums of a group meet its scale in float32, so no weight is
rounded.

On an H100 four-bit results are exact where sums are, and with few rows it takes 0.3 to 0.6 of the time of a bfloat16
product (docs/kernels.md). Codes of eight bits were never run on a chip. Elsewhere it is compiled for sm_90a
(`kernels.aot.gpu`), and interpreted, where registers cannot be: there the operand goes through shared memory and pairs
are taken apart by a plain cast of the words.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from qjax.kernels.gpu import codings, transposed
from qjax.kernels.gpu.codings import Coding
from qjax.kernels.gpu.shared_memory import swizzled
from qjax.kernels.gpu.transposed import Tiles, depth, refuse, tiles


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5, 6))
def matmul(
    x: jax.Array,
    words: jax.Array,
    scale: jax.Array,
    tiling: Tiles | None = None,
    interpret: Any = False,
    dtype: Any = jnp.float32,
    coding: Coding = codings.INT4,
) -> jax.Array:
    """x [M, K] bfloat16 @ (codes [K, N] * scale [G, N] repeated K / G times) -> [M, N]; words from `codings.pack`.

    Sums are float32 and rounded once, to dtype float32 or bfloat16. M is padded to whole tiles. `interpret`: an
    `InterpretGPUParams`. Gradients reach x and scale and are those of `reference`. ValueError for shapes that do not
    fit. Needs jax 0.12.
    """
    (M, K), (steps, N, count), groups = x.shape, words.shape, scale.shape[0]
    step, group = count * coding.lanes, K // groups
    why = refuse(K, N, group)
    if words.dtype != coding.dtype:
        raise ValueError(f"{coding.name} takes words of {jnp.dtype(coding.dtype)}, not {words.dtype}")
    if steps * step != K or K % groups or scale.shape[1] != N or why is not None or step != depth(group):
        raise ValueError(f"x {x.shape}, words {words.shape} and scale {scale.shape} do not fit: {why}")
    if M == 0:
        return jnp.zeros((0, N), dtype)
    tiling = tiles(M, K, N, group) if tiling is None else tiling
    if min(tiling.turn, group // step) > 1 and group // step % tiling.turn:
        raise ValueError(f"{tiling}: groups of {group} end within a turn of {tiling.turn * step}")
    padded = -(-M // tiling.rows) * tiling.rows
    x = jnp.pad(x.astype(jnp.bfloat16), [(0, padded - M), (0, 0)])
    kernel = functools.partial(
        _kernel, tiling=tiling, coding=coding, steps_a_group=group // step, interpret=bool(interpret)
    )
    scratch = [plgpu.SMEM((tiling.outputs, step), jnp.bfloat16)] if interpret else []
    stored = dtype if tiling.splits == 1 else jnp.float32
    call = transposed.call(kernel, tiling, padded, words, stored, scratch, interpret)
    parts = call(words, x, scale.astype(jnp.float32))
    return (parts[0] if tiling.splits == 1 else parts.sum(0).astype(dtype))[:M]


def _kernel(
    words: Any,
    x: Any,
    scale: Any,
    y: Any,
    *operand: Any,
    tiling: Tiles,
    coding: Coding,
    steps_a_group: int,
    interpret: bool,
) -> None:
    """One block: a tile of y^T, the sums of one step after another under the scales of their groups."""
    steps, _, count = words.shape
    step, entry = count * coding.lanes, coding.bits * coding.lanes
    where = transposed.place(tiling, steps)
    _, j, _, first, mine = where
    outputs, rows, turn = tiling.outputs, tiling.rows, tiling.turn
    together = min(turn, steps_a_group)  # steps of a turn that share a group: all, or one
    sums_shape = mine.size, rows

    def body(_: Any, words_s: Any, x_s: Any, scale_s: Any, total: jax.Array) -> jax.Array:
        for u in range(turn):
            codes = codings.operand(words_s[u, mine], coding, interpret)
            if interpret:
                operand[0][mine] = codes
            a, b = operand[0].at[mine] if interpret else codes, x_s.at[:, pl.ds(u * step, step)].T

            def multiply(sums: Any, a: Any = a, b: Any = b) -> jax.Array:
                plgpu.wgmma(sums, a, b)
                return sums[...]

            sums = pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef(sums_shape, jnp.float32))
            total += sums * lax.broadcast_in_dim(scale_s[u // together, mine], sums_shape, (0,))
        plgpu.commit_smem()  # what was read above is written by a copy next
        return total

    specs = [
        plgpu.BlockSpec((turn, outputs, count), lambda k: (first + k, where.i, 0), transforms=swizzled(count, entry)),
        plgpu.BlockSpec((rows, turn * step), lambda k: (j, first + k), transforms=swizzled(step, 16)),
        plgpu.BlockSpec((turn // together, outputs), lambda k: ((first + k) * together // steps_a_group, where.i)),
    ]
    transposed.run(body, lambda total: total, y, where, tiling, jnp.float32, specs, (words, x, scale))


def reference(x: jax.Array, words: jax.Array, scale: jax.Array, coding: Coding = codings.INT4) -> jax.Array:
    """What `matmul` computes, with the whole weight dequantized and everything in float32."""
    codes = codings.unpack(words, coding, "int8" if coding.lanes > 1 else jnp.dtype(coding.dtype).name)
    W = coding.decode(codes) * jnp.repeat(scale.astype(jnp.float32), x.shape[1] // scale.shape[0], axis=0)
    return jnp.dot(x.astype(jnp.float32), W, precision="highest")


def _forward(
    x: jax.Array, words: jax.Array, scale: jax.Array, tiling: Tiles | None, interpret: Any, dtype: Any, coding: Coding
) -> tuple[jax.Array, tuple]:
    return matmul(x, words, scale, tiling, interpret, dtype, coding), (x, words, scale)


def _backward(tiling: Tiles | None, interpret: Any, dtype: Any, coding: Coding, kept: tuple, dy: jax.Array) -> tuple:
    x, words, scale = kept
    dx, d_scale = jax.vjp(lambda x, scale: reference(x, words, scale, coding), x, scale)[1](dy.astype(jnp.float32))
    return dx, np.zeros(words.shape, jax.dtypes.float0), d_scale


matmul.defvjp(_forward, _backward)
