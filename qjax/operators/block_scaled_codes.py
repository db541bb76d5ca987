"""Float4 and float8 codes and their scales as Blackwell's tensor cores read them, and when the kernel multiplies them.

Inputs and weight both stay in codes (NVFP4, MXFP4, MXFP8; catalogue A19, A20), so the layout serves weights whose
inputs are rounded to the same format; for float inputs it is dequantized.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array, lax

from qjax.formats.elements import E2M1, E4M3, Element
from qjax.operators import grouped
from qjax.operators.implementations import Layout
from qjax.operators.narrow_codes import factors
from qjax.operators.operator import batched
from qjax.operators.wgmma_words import refuse_gpu
from qjax.qarray import FULL, Grid, Meta, QArray

NAME = "gpu.block_scaled.1"
CAPABILITY = "10.0"  # of the first Blackwell, which has tcgen05.mma with block_scale
ROWS = 128  # of outputs in a tile


def refuse_platform(platform: str) -> str | None:
    """Why the kernel cannot run here, or None."""
    return refuse_gpu(platform, CAPABILITY, "a product of scaled blocks")


def refuse_layout(q: QArray) -> str | None:
    """Why the layout cannot hold q, or None."""
    why = grouped.refuse_blocks(q)
    if why is not None:
        return why
    if q.meta.offset is not None:
        return f"it has a {q.meta.offset} a block: a product of scaled blocks takes scales alone"
    codes, scale = _dtypes(q.meta, q.grid)
    if codes is None or scale is None:
        return f"no tensor core multiplies {q.meta.element.name} codes under its scales"
    from qjax.kernels.gpu import block_scaled  # Pallas takes a second to import

    K, N = q.codes.shape[-2:]
    taken = block_scaled.BLOCKS[scale.name]
    if q.meta.block[0] != taken:
        return f"blocks of {q.meta.block[0]}: {scale.name} scales are of {taken} codes"
    return block_scaled.refuse(K, N, codes, scale)


def refuse(x: QArray, op: Any) -> str | None:
    """Why the codes of x cannot meet those of a weight in the kernel, or None."""
    if getattr(op, "layout", None) != NAME:
        return f"the weight is not in the layout {NAME}: prepare it"
    if x.meta.element != op.grid.meta.element or x.meta.block != (1, op.grid.meta.block[0]):
        return (
            f"x has {x.meta.element.name} codes in blocks {x.meta.block} and the weight {op.grid.meta.element.name} in "
            f"{op.grid.meta.block}: one format for both"
        )
    if len(x.scales) != 1 or x.meta.offset is not None or _dtypes(x.meta, x.grid) != _dtypes(op.grid.meta, op.grid):
        return "x and the weight have scales of different kinds: one format for both"
    return None


def run(x: QArray, op: Any, interpret: Any = False) -> Array:
    """Codes of x [T, K] and of a weight [K, N] in the layout, whose scales are in tiles: float32 [T, N]."""
    from qjax.kernels.gpu import block_scaled

    meta, N = op.grid.meta, op.shape[-1]
    codes, scale = _dtypes(meta, op.grid)
    left = lax.bitcast_convert_type(x.codes.astype(jnp.uint4) if codes == jnp.float4_e2m1fn else x.codes, codes)
    right = lax.bitcast_convert_type(op.codes.reshape(N, -1), codes).reshape(N, x.codes.shape[-1])
    (x_scale, x_outer), (_, outer) = factors(x.grid), factors(_untiled(op.grid))
    y = block_scaled.matmul(
        left, right, block_scaled.pack(x_scale), _stored(op.grid.scales[0], scale), interpret=interpret
    )
    for common in (x_outer, outer):
        y = y if common is None else y * common
    return y


def _dtypes(meta: Meta, grid: Grid) -> tuple[Any, Any]:
    """Types of codes and of scales as the tensor core knows them; None for what it does not."""
    known: dict[Element, Any] = {E2M1: jnp.dtype(jnp.float4_e2m1fn), E4M3: jnp.dtype(jnp.float8_e4m3fn)}
    codes = known.get(meta.element)
    stored = grid.scales[0]
    if not isinstance(stored, QArray):
        return codes, stored.dtype if stored.dtype == jnp.float8_e8m0fnu else None
    tensor = stored.meta.block == (FULL, FULL) and stored.meta.offset is None and len(stored.scales) == 1
    return codes, jnp.dtype(jnp.float8_e4m3fn) if tensor and stored.meta.element == E4M3 else None


def _pack(q: QArray) -> Array:
    """Codes [..., K, N] as bytes [..., N / 128, 128, K], or [..., K / 2] with two float4 a byte, the first one low."""
    codes = jnp.swapaxes(q.codes, -1, -2)
    if q.meta.element == E2M1:
        codes = codes[..., ::2] | (codes[..., 1::2] << jnp.uint8(4))
    return codes.reshape(*codes.shape[:-2], -1, ROWS, codes.shape[-1])


def _unpack(codes: Array, grid: Grid) -> Array:
    *lead, tiles, rows, width = codes.shape
    codes = codes.reshape(*lead, tiles * rows, width)
    if grid.meta.element == E2M1:
        pairs = jnp.stack([codes & jnp.uint8(15), codes >> jnp.uint8(4)], axis=-1)
        codes = pairs.reshape(*lead, tiles * rows, 2 * width)
    return jnp.swapaxes(codes, -1, -2)


def _columns(codes: Array, ids: Array) -> Array:
    """Bytes [..., N / 128, 128, width] of the outputs ids [m], and of others up to a multiple of 128."""
    *lead, _, _, width = codes.shape
    ids = jnp.pad(ids, (0, -ids.size % ROWS))
    taken = jnp.take(codes.reshape(*lead, -1, width), ids, axis=-2)
    return taken.reshape(*lead, ids.size // ROWS, ROWS, width)


def _tiled(grid: Grid) -> Grid:
    """The grid with the scales [..., K / block, N] of its blocks in the tiles of `block_scaled.pack`."""
    from qjax.kernels.gpu import block_scaled

    return _rearranged(grid, 2, lambda scale: block_scaled.pack(scale.T))


def _untiled(grid: Grid) -> Grid:
    from qjax.kernels.gpu import block_scaled

    return _rearranged(grid, 4, lambda scale: block_scaled.unpack(scale).T)


def _rearranged(grid: Grid, axes: int, f: Callable[[Array], Array]) -> Grid:
    stored = grid.scales[0]
    if isinstance(stored, QArray):
        moved: Any = dataclasses.replace(stored, codes=batched(f, stored.codes.ndim - axes)(stored.codes))
    else:
        moved = batched(f, stored.ndim - axes)(stored)
    return dataclasses.replace(grid, scales=(moved,))


def _stored(scale: Any, dtype: Any) -> Array:
    return lax.bitcast_convert_type(scale.codes, dtype) if isinstance(scale, QArray) else scale


def _core(codes: Array, grid: Grid) -> tuple[int, int]:
    """Logical (K, N)."""
    *_, tiles, rows, width = codes.shape
    K = 2 * width if grid.meta.element == E2M1 else width
    return K - grid.meta.padding[0], tiles * rows


LAYOUT = Layout(
    target="gpu",
    refuse=refuse_layout,
    missing=lambda: refuse_platform("gpu") if jax.default_backend() == "gpu" else None,
    pack=_pack,
    unpack=_unpack,
    core=_core,
    columns=_columns,
    implementations=(),
    arrange=_tiled,
    restore=_untiled,
)
