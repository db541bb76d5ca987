"""Narrow codes for the TPU kernels: how each kind lies in a layout of its own, and when the kernel reads it."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qjax.formats.elements import E2M1, E4M3, Element
from qjax.formats.integer import Int
from qjax.formats.table import Table
from qjax.operators import grouped
from qjax.operators.implementations import Implementation, Layout
from qjax.qarray import FULL, Grid, QArray
from qjax.quantization import steps

OLDEST_JAX = (0, 12)  # the Pallas these kernels are written and tested for


class Kind(NamedTuple):
    """The elements of a layout, and the name of their `codings.Coding`: Pallas takes a second to import."""

    coding: str
    misfit: Callable[[Element], str | None]  # an element -> why its codes are no codes of this kind, or None


def _integers(bits: int) -> Kind:
    def misfit(element: Element) -> str | None:
        fits = isinstance(element, Int) and element.signed and element.bits <= bits
        return None if fits else f"{element.name} codes do not fit int{bits}"

    return Kind(f"INT{bits}", misfit)


def _exactly(known: Element, coding: str) -> Kind:
    return Kind(coding, lambda element: None if element == known else f"{element.name} is not {known.name}")


def _values(element: Element) -> str | None:
    fits = isinstance(element, Table) and element.bits <= 4
    return None if fits else f"{element.name} is no table of at most 16 values"


KINDS = {
    "tpu.int2.1": _integers(2),
    "tpu.int4.2": _integers(4),
    "tpu.int8.1": _integers(8),
    "tpu.e2m1.1": _exactly(E2M1, "E2M1"),
    "tpu.e2m1_pairs.1": _exactly(E2M1, "E2M1_PAIRS"),
    "tpu.e4m3.1": _exactly(E4M3, "E4M3"),
    "tpu.table4.1": Kind("TABLE4", _values),
}

OWN = {"tpu.e2m1_pairs.1": "tpu-v4"}  # what is laid out for one chip


def coding(layout: str) -> Any:
    """The `codings.Coding` that the kernel reads a layout with."""
    from qjax.kernels.tpu import codings

    return getattr(codings, KINDS[layout].coding)


def refuse(q: QArray, layout: str) -> str | None:
    """Why the layout cannot hold q for the kernel, or None."""
    why = KINDS[layout].misfit(q.meta.element) or (
        refuse_table(q) if isinstance(q.meta.element, Table) else grouped.refuse_blocks(q)
    )
    if why is not None:
        return why
    if q.meta.offset is not None:
        return f"it has a {q.meta.offset} a group: the kernel takes scales alone"
    from qjax.kernels.tpu import group_scaled

    K, N = q.codes.shape[-2:]
    return group_scaled.refuse(K, N, _group(q.grid, K), coding(layout))


def refuse_table(q: QArray) -> str | None:
    """Why the kernel cannot read the table and the scales of q, or None. Tables of a tensor often have no scale."""
    if len(q.meta.block) != 2 or q.meta.block[-1] not in (1, FULL):
        return f"blocks {q.meta.block} do not lie along the inputs alone"
    if q.table is not None and q.table.shape[-3] != 1:
        return f"it has tables for {q.table.shape[-3]} groups: the kernel takes one for a column, or for all of them"
    if len(q.scales) > 1:
        return "its scale is a product of several"
    return None


def refuse_platform(platform: str) -> str | None:
    """Why no kernel for TPUs can run here, or None."""
    if platform != "tpu":
        return f"it is compiled for tpu, not {platform}"
    if jax.__version_info__[:2] < OLDEST_JAX:
        return f"it needs jax {'.'.join(map(str, OLDEST_JAX))} or newer; this is {jax.__version__}"
    return None


def refuse_kernel(packed: Any, tokens: int, platform: str, dtype: Any) -> str | None:
    """Why the kernel cannot run this leaf, or None."""
    if packed.batch_shape:
        why = "the weight has batch axes: take one entry at a time, or rows sorted by entry (`qjax.ragged_dot`)"
        return _refuse_inputs(platform, dtype) or why
    return _refuse_inputs(platform, dtype) or _refuse_chip(packed)


def _refuse_inputs(platform: str, dtype: Any) -> str | None:
    """Why no kernel for narrow codes can run here on x of this type, or None."""
    takes = jnp.dtype(dtype) == jnp.bfloat16
    return refuse_platform(platform) or (
        None if takes else f"it takes bfloat16 activations and x is {jnp.dtype(dtype)}"
    )


def _refuse_chip(packed: Any) -> str | None:
    from qjax.kernels.tpu import codings, tiles

    return codings.refuse(coding(packed.layout), tiles.chip())


def run(
    x: jax.Array,
    packed: Any,
    dtype: Any,
    interpret: bool = False,
    pair: tuple[jax.Array, jax.Array] | None = None,
) -> jax.Array:
    """The kernel on x [tokens..., K]; a pair t [tokens, R], b [R, N] has t @ b added to the product in it."""
    from qjax.kernels.tpu import epilogues, group_scaled

    kind = coding(packed.layout)
    N = packed.codes.shape[-1]
    flat = jnp.pad(x.reshape(-1, x.shape[-1]), [(0, 0), (0, packed.grid.meta.padding[0])])
    K = flat.shape[1]
    scale, outer = factors(packed.grid)
    table = None if kind.lookup is None else _table(packed.grid)
    scale = jnp.broadcast_to(scale, (K // _group(packed.grid, K), N))
    codes = packed.codes.reshape(K // kind.packed, N)
    added = None
    if pair is not None:
        added, outer = epilogues.Epilogue(*pair, None if outer is None else jnp.broadcast_to(outer, (1, N))), None
    y: jax.Array = group_scaled.matmul(flat, codes, scale, kind, interpret=interpret, table=table, epilogue=added)
    y = y if outer is None else y * outer
    return y.reshape(*x.shape[:-1], N).astype(x.dtype if dtype is None else dtype)


def refuse_experts(packed: Any, tokens: int, platform: str, dtype: Any) -> str | None:
    """Why the kernel for rows sorted by expert cannot run this leaf, or None."""
    why = _refuse_inputs(platform, dtype)
    if why is not None:
        return why
    if len(packed.batch_shape) != 1:
        return f"the weight has {len(packed.batch_shape)} batch axes, not one"
    kind = coding(packed.layout)
    return f"{kind.name} codes are looked up" if kind.lookup else _refuse_chip(packed)


def run_experts(x: jax.Array, sizes: jax.Array, packed: Any, dtype: Any, interpret: bool = False) -> jax.Array:
    """That kernel on x [tokens, K]."""
    from qjax.kernels.tpu import expert_products

    kind = coding(packed.layout)
    E, N = packed.codes.shape[0], packed.codes.shape[-1]
    x_padded = jnp.pad(x, [(0, 0), (0, packed.grid.meta.padding[0])])
    K = x_padded.shape[1]
    scale, outer = factors(packed.grid)
    scale = jnp.broadcast_to(scale, (E, K // _group(packed.grid, K), N))
    codes = packed.codes.reshape(E, K // kind.packed, N)
    y: jax.Array = expert_products.matmul(x_padded, codes, scale, sizes, kind, interpret=interpret)
    if outer is not None:
        owner = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(x.shape[0]), side="right")
        y = y * jnp.take(outer[:, 0], owner, axis=0, mode="clip")
    return y.astype(x.dtype if dtype is None else dtype)


def factors(grid: Grid) -> tuple[jax.Array, jax.Array | None]:
    """Scales of the groups [groups or 1, N or 1], and what is common to those of a column [1, N or 1] or None.

    Behind the batch axes of the grid, if it has any.

    Apart, because the scales that NVFP4 stores are exact in bfloat16 and their products with the tensor's are not.
    Scales stored as floats of eight bits that the kernel reads stay so; others are float32.
    """
    if not grid.scales:
        return jnp.ones((1, 1), jnp.float32), None
    stored = grid.scales[0]
    if not isinstance(stored, QArray):
        read = stored.dtype in (jnp.float8_e4m3fn, jnp.float8_e8m0fnu)
        return stored if read else stored.astype(jnp.float32), None
    (down, across), element = stored.meta.block, stored.meta.element
    if len(stored.scales) == 1 and stored.meta.offset is None and down == FULL and across in (1, FULL):
        outer, _ = steps(stored)
        if element == E4M3:
            return jax.lax.bitcast_convert_type(stored.codes, jnp.float8_e4m3fn), outer
        return element.decode(stored.codes, stored.table), outer
    scale, _ = steps(grid)
    assert scale is not None  # `refuse`: there is one
    return scale, None


def _table(grid: Grid) -> jax.Array:
    """The values of sixteen codes, [16, 1] or for each column [16, N]; those that the element lacks are its last."""
    table = jnp.asarray(grid.meta.element.values())[:, None] if grid.table is None else grid.table[0].T
    return jnp.pad(table.astype(jnp.float32), ((0, 16 - table.shape[0]), (0, 0)), mode="edge")


def _group(grid: Grid, K: int) -> int:
    return K if grid.meta.block[0] == FULL else grid.meta.block[0]


def _pack(q: QArray, layout: str) -> jax.Array:
    *lead, K, N = q.codes.shape
    kind, group = coding(layout), _group(q.grid, K)
    if kind.packed == 1:
        return q.codes.astype(kind.dtype).reshape(*lead, K // group, group, N)
    span = kind.span(K, group)
    assert span is not None  # `refuse`
    stored: jax.Array = kind.stored(q.codes + jnp.asarray(kind.above, q.codes.dtype), span)
    return stored


def _unpack(codes: jax.Array, grid: Grid, layout: str) -> jax.Array:
    *lead, parts, rows, N = codes.shape
    kind, dtype = coding(layout), grid.meta.element.code_dtype
    if kind.packed == 1:
        return codes.astype(dtype).reshape(*lead, parts * rows, N)
    restored: jax.Array = kind.restored(codes)
    return restored.astype(dtype) - jnp.asarray(kind.above, dtype)


def columns(codes: jax.Array, ids: jax.Array, interpret: bool = False) -> jax.Array:
    """Codes [..., parts, rows, N] of the outputs ids [m]: few of many by the kernel on a TPU."""
    from qjax.kernels.tpu import column_gather

    *lead, N = codes.shape
    rows = math.prod(lead)
    few = refuse_platform(jax.default_backend()) is None and column_gather.prefer(rows, N, ids.size)
    if not (interpret or few) or column_gather.refuse(rows, N, codes.dtype) is not None:
        return jnp.take(codes, ids, axis=-1)
    ids = jnp.where(ids < 0, ids + N, ids)  # from the end
    return column_gather.take(codes.reshape(rows, N), ids, interpret).reshape(*lead, ids.size)


def _core(codes: jax.Array, grid: Grid, layout: str) -> tuple[int, int]:
    """Logical (K, N)."""
    return codes.shape[-3] * codes.shape[-2] * coding(layout).packed - grid.meta.padding[0], codes.shape[-1]


def _layout(name: str) -> Layout:
    return Layout(
        target=OWN.get(name, "tpu"),
        refuse=lambda q: refuse(q, name),
        missing=lambda: None,
        pack=lambda q: _pack(q, name),
        unpack=lambda codes, grid: _unpack(codes, grid, name),
        core=lambda codes, grid: _core(codes, grid, name),
        columns=columns,
        implementations=(Implementation("mosaic", refuse_kernel, lambda *_: True, run),),
        ragged=(Implementation("mosaic", refuse_experts, lambda *_: True, run_experts),),
    )


LAYOUTS = {name: _layout(name) for name in KINDS}
