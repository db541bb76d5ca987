"""Integers under scales of groups along the inputs on CPU: a scan over groups, codes a byte each or two a byte."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qjax.formats.integer import Int
from qjax.kernels import groups
from qjax.operators.implementations import Implementation, Layout
from qjax.operators.operator import batched
from qjax.qarray import FULL, Grid, Meta, QArray
from qjax.quantization import steps


def chunk(block: int, K: int) -> int:
    """Codes a step of the kernel takes: the block, or a divisor of K near 64 where one block spans the axis."""
    return block if block != FULL else max(d for d in range(1, min(K, 128) + 1) if K % d == 0)


def refuse_groups(q: QArray) -> str | None:
    """Why the scan over groups cannot run q, or None."""
    if not isinstance(q.meta.element, Int):
        return f"its codes are {q.meta.element.name}, not integers"
    return refuse_blocks(q)


def refuse_blocks(q: QArray) -> str | None:
    """Why no kernel reads the scales of q, whatever its codes, or None."""
    meta = q.meta
    if not q.scales:
        return "it has no scale: the codes are the values"
    if len(q.scales) > 1:
        return "its scale is a product of several"
    if len(meta.block) != 2 or meta.block[-1] != 1:
        return f"blocks {meta.block} do not lie along the inputs alone"
    return None


def whole(meta: Meta, axis: int, size: int) -> bool:
    """Whether one block spans an axis."""
    return (meta.block[axis] == FULL or meta.block[axis] >= size) and meta.padding[axis] == 0


def refuse_nibbles(q: QArray) -> str | None:
    """Why the nibble layout cannot hold q, or None."""
    if isinstance(q.meta.element, Int) and q.meta.element.bits > 4:
        return f"{q.meta.element.name} codes do not fit a nibble"
    why = refuse_groups(q)
    if why is None and chunk(q.meta.block[0], q.codes.shape[-2]) % 2:
        why = f"groups of {chunk(q.meta.block[0], q.codes.shape[-2])} cannot be split in halves"
    return why


def run_groups(x: jax.Array, codes: jax.Array, grid: Grid, lowest: int, dtype: Any) -> jax.Array:
    """Multiply x [batch..., tokens..., K] with codes [batch..., groups, rows, N] + lowest under the scales of grid."""
    batch, count, N = codes.ndim - 3, codes.shape[-3], codes.shape[-1]
    lead = x.shape[:batch]
    scale, offset = (None if a is None else jnp.broadcast_to(a, (*lead, count, N)) for a in steps(grid))
    flat = x.reshape(*lead, -1, x.shape[-1])
    flat = jnp.pad(flat, [(0, 0)] * (batch + 1) + [(0, grid.meta.padding[0])])
    if grid.meta.offset is None:
        f = batched(lambda x, codes, scale: groups.matmul(x, codes, scale, -lowest), batch)
        y = f(flat, codes, scale)
    elif grid.meta.offset in ("zero_point", "float_zero"):
        f = batched(lambda x, codes, scale, z: groups.matmul(x, codes, scale, z - jnp.float32(lowest)), batch)
        y = f(flat, codes, scale, offset)
    else:
        f = batched(lambda x, codes, scale, m: groups.matmul(x, codes, scale, -lowest, m), batch)
        y = f(flat, codes, scale, offset)
    return y.reshape(*x.shape[:-1], N).astype(x.dtype if dtype is None else dtype)


def run_bytes(x: jax.Array, q: QArray, dtype: Any) -> jax.Array:
    """The scan over groups on the codes of a QArray as they are, one a byte."""
    *lead, K, N = q.codes.shape
    size = chunk(q.meta.block[0], K)
    return run_groups(x, q.codes.reshape(*lead, K // size, size, N), q.grid, 0, dtype)


def prefer_groups(leaf: Any, tokens: int, platform: str) -> bool:
    """Few tokens on a CPU, and a weight whose floats leave the cache (measured: experiments.benchmarks.kernels)."""
    return platform == "cpu" and tokens <= FEW_TOKENS and leaf.shape[-1] * leaf.shape[-2] >= CACHED_WEIGHTS


FEW_TOKENS = 32
CACHED_WEIGHTS = 2**18


def lowest(meta: Meta) -> int:
    """The smallest code two's complement allows, whatever the element leaves out: what a nibble counts from."""
    return -(2 ** (meta.element.bits - 1)) if np.dtype(meta.element.code_dtype).kind == "i" else 0


BYTES = Implementation("groups", lambda q, *_: refuse_groups(q), prefer_groups, run_bytes)
NIBBLES = "cpu.nibbles.1"
LAYOUT = Layout(
    target="cpu",
    refuse=refuse_nibbles,
    missing=lambda: None,
    pack=lambda q: groups.pack_nibbles(q.codes, lowest(q.meta), chunk(q.meta.block[0], q.codes.shape[-2])),
    unpack=lambda codes, grid: groups.unpack_nibbles(codes, lowest(grid.meta), grid.meta.element.code_dtype),
    core=lambda codes, grid: (codes.shape[-3] * codes.shape[-2] * 2 - grid.meta.padding[0], codes.shape[-1]),
    implementations=(
        Implementation(
            "groups",
            lambda *_: None,
            prefer_groups,
            lambda x, packed, dtype: run_groups(x, packed.codes, packed.grid, lowest(packed.grid.meta), dtype),
        ),
    ),
)
