"""Four-bit integers for the compiled CPU kernel: the layout of words, and why a leaf is not in it."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qjax.formats.integer import Int
from qjax.kernels.cpu import nibble_words as kernel
from qjax.operators import grouped
from qjax.operators.implementations import Implementation, Layout
from qjax.qarray import FULL, Grid, Meta, QArray
from qjax.quantization import steps

NAME = "cpu.words.1"


def refuse(q: QArray) -> str | None:
    """Why words cannot hold q, or None."""
    return grouped.refuse_groups(q) or misfit(q.meta, *q.codes.shape[-2:])


def misfit(meta: Meta, K: int, N: int) -> str | None:
    """Why words cannot hold [K, N] codes, K with its padding, of this element and block, or None."""
    if isinstance(meta.element, Int) and meta.element.bits > 4:
        return f"{meta.element.name} codes do not fit a nibble"
    size = K if meta.block[0] == FULL else meta.block[0]
    if size % kernel.ROWS:
        return f"groups of {size} are no multiple of {kernel.ROWS}"
    return f"{N} outputs are no multiple of {kernel.TILE}" if N % kernel.TILE else None


def coding(meta: Meta) -> kernel.Coding:
    """How the kernel reads nibbles of this element."""
    return kernel.Coding(8 if np.dtype(meta.element.code_dtype).kind == "i" else 0, meta.offset)


def refuse_compiled(leaf: Any, tokens: int, platform: str, dtype: Any) -> str | None:
    """Why the compiled kernel cannot run, or None. The first question builds it."""
    if platform != "cpu":
        return f"it is built for cpu, not {platform}"
    if jnp.dtype(dtype) == jnp.float64:
        return "it computes in float32 and x is float64"
    return kernel.problem()


def run_compiled(x: jax.Array, packed: Any, dtype: Any) -> jax.Array:
    """The kernel in C++ on x [batch..., tokens..., K]; the batch is one axis to it."""
    words, grid = packed.codes, packed.grid
    (tiles, rows), meta = words.shape[-3:-1], grid.meta
    lead, K, N = words.shape[:-3], rows * kernel.ROWS, tiles * kernel.TILE
    groups = 1 if meta.block[0] == FULL else K // meta.block[0]
    scale, offset = steps(grid)
    if offset is None and isinstance(grid.scales[0], jax.Array) and grid.scales[0].dtype == jnp.bfloat16:
        scale = grid.scales[0]  # the kernel reads it as it is: no float32 copy in every call

    def whole(a: jax.Array | None) -> jax.Array | None:
        return None if a is None else jnp.broadcast_to(a, (*lead, groups, N)).reshape(-1, groups, N)

    flat = x.reshape(math.prod(lead), math.prod(x.shape[len(lead) : -1]), x.shape[-1])
    flat = jnp.pad(flat, [(0, 0), (0, 0), (0, meta.padding[0])])
    words = words.reshape(-1, tiles, rows, kernel.TILE)
    y: jax.Array = kernel.matmul(flat, words, whole(scale), whole(offset), coding(meta))
    return y.reshape(*x.shape[:-1], N).astype(x.dtype if dtype is None else dtype)


def refuse_nibbles(packed: Any, *_: Any) -> str:
    """Why the kernel does not run a leaf in the layout of `grouped`: what `prepare` found."""
    _, N = packed.shape[-2:]
    K = packed.shape[-2] + packed.grid.meta.padding[0]
    why = misfit(packed.grid.meta, K, N) or kernel.problem()
    return f"it reads {NAME}: {why or 'prepare the array again'}"


def core(words: jax.Array, grid: Grid) -> tuple[int, int]:
    """Logical (K, N)."""
    return words.shape[-2] * kernel.ROWS - grid.meta.padding[0], words.shape[-3] * kernel.TILE


def columns(words: jax.Array, ids: jax.Array) -> jax.Array:
    """Words [..., N / 32, K / 8, 32] of the outputs ids [m], and of others up to a multiple of 32."""
    ids = jnp.pad(ids, (0, -ids.size % kernel.TILE))
    taken = words[..., ids // kernel.TILE, :, ids % kernel.TILE]  # [m, ..., K / 8]
    return jnp.moveaxis(taken.reshape(ids.size // kernel.TILE, kernel.TILE, *taken.shape[1:]), (0, 1), (-3, -1))


LAYOUT = Layout(
    target="cpu",
    refuse=refuse,
    missing=kernel.problem,
    pack=lambda q: kernel.pack(q.codes, coding(q.meta).center),
    unpack=lambda words, grid: kernel.unpack(words, coding(grid.meta).center, grid.meta.element.code_dtype),
    core=core,
    columns=columns,
    implementations=(Implementation("compiled", refuse_compiled, lambda *_: True, run_compiled),),
)
ELSEWHERE = Implementation("compiled", refuse_nibbles, lambda *_: False, run_compiled)
"""What a leaf in another layout of this target answers when asked for the kernel: why not."""
