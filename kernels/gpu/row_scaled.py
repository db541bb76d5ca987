"""y = x @ W for x and W of eight-bit codes under a scale a row of x and a column of W (W8A8, FP8), on Hopper GPUs.

Both operands go from shared memory to the tensor core as they are, W^T @ x^T as in `group_scaled`, and scales meet the
sums at the end. Sums of int8 are int32 and exact. For E4M3 the accumulators of Hopper's tensor cores keep some 14 bits
(DeepSeek-V3, arXiv:2412.19437, section 3.3.2), which on a long depth loses more than the codes did: the sums of every
step, at most 128 deep, are therefore added up in float32 outside of it.

WGMMA reads operands of eight bits along the depth alone, and the order of the depth is free as long as both operands
have the same one: the weight lies as `codings.pack` puts bytes, so that one array serves float inputs, in
`group_scaled`, and rounded ones, whose codes are brought into that order here.

Nothing here was run on a chip. The kernel is compiled for sm_90a (`kernels.aot.gpu`), and interpreted, which knows
nothing of the accumulators' bits.
"""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from qjax.kernels.gpu import codings, transposed
from qjax.kernels.gpu.shared_memory import swizzled
from qjax.kernels.gpu.transposed import Tiles

SUMS = {"int8": jnp.int32, "float8_e4m3fn": jnp.float32}  # codes that WGMMA multiplies, and what it adds them up in


def matmul(
    x: jax.Array,
    w: jax.Array,
    x_scale: jax.Array,
    w_scale: jax.Array,
    tiling: Tiles | None = None,
    interpret: Any = False,
) -> jax.Array:
    """(x [M, K] under x_scale [M]) @ (codes [K, N] under w_scale [N]) -> [M, N] float32.

    w [K / step, N, step] holds the codes as `codings.pack` puts them, in steps of 64 or 128.
    Codes of both are int8 or both float8_e4m3fn. M is padded to whole tiles, and x brought into the order of w.
    `interpret`: an `InterpretGPUParams`. No gradients: both operands are codes. ValueError for what does not fit. Needs
    jax 0.12.
    """
    (M, K), (_, N, step) = x.shape, w.shape
    why = _misfit(x, w, x_scale, w_scale)
    if why is not None:
        raise ValueError(
            f"x {x.shape} {x.dtype}, w {w.shape} {w.dtype}, scales {x_scale.shape}, {w_scale.shape} do not fit: {why}"
        )
    if M == 0:
        return jnp.zeros((0, N), jnp.float32)
    tiling = transposed.tiles(M, K, N, step) if tiling is None else tiling
    padded = -(-M // tiling.rows) * tiling.rows
    sums = SUMS[x.dtype.name]
    x = codings.arranged(x, step)
    x = jnp.concatenate([x, jnp.zeros((padded - M, K), x.dtype)])
    x_scale = jnp.pad(x_scale.astype(jnp.float32), (0, padded - M))
    w_scale = w_scale.astype(jnp.float32)
    kernel = functools.partial(_kernel, tiling=tiling, sums=sums)
    stored = jnp.float32 if tiling.splits == 1 else sums
    parts = transposed.call(kernel, tiling, padded, w, stored, (), interpret)(w, x, x_scale, w_scale)
    if tiling.splits == 1:
        return parts[0, :M]
    return (parts.sum(0).astype(jnp.float32) * x_scale[:, None] * w_scale[None])[:M]


def _kernel(w: Any, x: Any, x_scale: Any, w_scale: Any, y: Any, *, tiling: Tiles, sums: Any) -> None:
    """One block: a tile of y^T, the sums of one step after another, under its scales unless other parts are missing."""
    steps, _, step = w.shape
    where = transposed.place(tiling, steps)
    i, j, _, first, mine = where
    outputs, rows, turn = tiling.outputs, tiling.rows, tiling.turn
    shape = mine.size, rows

    def body(_: Any, w_s: Any, x_s: Any, total: jax.Array) -> jax.Array:
        for u in range(turn):
            a, b = w_s.at[u, mine], x_s.at[:, pl.ds(u * step, step)].T

            def multiply(found: Any, a: Any = a, b: Any = b) -> jax.Array:
                plgpu.wgmma(found, a, b)
                return found[...]

            total += pl.run_scoped(multiply, plgpu.WGMMAAccumulatorRef(shape, sums))
        return total

    def finish(total: jax.Array) -> jax.Array:
        if tiling.splits > 1:
            return total
        reads: Any = functools.partial(plgpu.load, optimized=False)  # once a block: a few bytes a lane
        down = reads(w_scale.at[pl.ds(i * outputs + mine.start, mine.size)], layout=plgpu.Layout.WGMMA.reduce(1))
        across = reads(x_scale.at[pl.ds(j * rows, rows)], layout=plgpu.Layout.WGMMA.reduce(0))
        scales = lax.broadcast_in_dim(down, shape, (0,)) * lax.broadcast_in_dim(across, shape, (1,))
        return total.astype(jnp.float32) * scales

    specs = [
        plgpu.BlockSpec((turn, outputs, step), lambda k: (first + k, i, 0), transforms=swizzled(step, 8)),
        plgpu.BlockSpec((rows, turn * step), lambda k: (j, first + k), transforms=swizzled(step, 8)),
    ]
    transposed.run(body, finish, y, where, tiling, sums, specs, (w, x))


def reference(x: jax.Array, w: jax.Array, x_scale: jax.Array, w_scale: jax.Array) -> jax.Array:
    """What `matmul` computes, with both operands dequantized and everything in float32."""
    codes = jnp.moveaxis(w, 1, 0).reshape(w.shape[1], -1).astype(jnp.float32) * w_scale.astype(jnp.float32)[:, None]
    left = codings.arranged(x, w.shape[2]).astype(jnp.float32) * x_scale.astype(jnp.float32)[:, None]
    return jnp.dot(left, codes.T, precision="highest")


def _misfit(x: jax.Array, w: jax.Array, x_scale: jax.Array, w_scale: jax.Array) -> str | None:
    """Why they cannot be multiplied, or None."""
    (M, K), (steps, N, step) = x.shape, w.shape
    if x.dtype.name not in SUMS or w.dtype != x.dtype:
        return f"codes of both are {' or both '.join(SUMS)}"
    if step not in (64, 128) or steps * step != K:
        return f"w is [{K} / step, N, step] with a step of 64 or 128"
    if (x_scale.shape, w_scale.shape) != ((M,), (N,)):
        return f"scales are to be {(M,)} and {(N,)}"
    return transposed.refuse(K, N, K)
