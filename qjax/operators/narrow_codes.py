"""Integers for the TPU kernels: codes as native int4 or int8, group by group, and when the kernels read them."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from qjax.formats.integer import Int
from qjax.operators import grouped
from qjax.operators.implementations import Implementation, Layout
from qjax.qarray import FULL, Grid, QArray
from qjax.quantization import steps

OLDEST_JAX = (0, 12)  # the Pallas these kernels are written and tested for


def refuse(q: QArray, bits: int) -> str | None:
    """Why codes of `bits` bits for the kernel cannot hold q, or None."""
    from qjax.kernels.tpu import group_scaled  # Pallas takes a second to import

    why = grouped.refuse_groups(q)
    if why is not None:
        return why
    element = q.meta.element
    if not isinstance(element, Int) or not element.signed or element.bits > bits:
        return f"{element.name} codes do not fit int{bits}"
    if q.meta.offset is not None:
        return f"it has a {q.meta.offset} a group: the kernel takes scales alone"
    K, N = q.codes.shape[-2:]
    return group_scaled.refuse(K, N, _group(q.grid, K), bits)


def refuse_platform(platform: str) -> str | None:
    """Why no kernel for TPUs can run here, or None."""
    if platform != "tpu":
        return f"it is compiled for tpu, not {platform}"
    if jax.__version_info__[:2] < OLDEST_JAX:
        return f"it needs jax {'.'.join(map(str, OLDEST_JAX))} or newer; this is {jax.__version__}"
    return None


def refuse_kernel(packed: Any, tokens: int, platform: str, dtype: Any) -> str | None:
    """Why the kernel cannot run this leaf, or None."""
    why = refuse_platform(platform)
    if why is not None:
        return why
    if jnp.dtype(dtype) != jnp.bfloat16:
        return f"it takes bfloat16 activations and x is {jnp.dtype(dtype)}"
    return "the weight has batch axes: take one entry at a time" if packed.batch_shape else None


def run(x: jax.Array, packed: Any, dtype: Any, interpret: bool = False) -> jax.Array:
    """The kernel on x [tokens..., K]."""
    from qjax.kernels.tpu import group_scaled

    groups, group, N = packed.codes.shape
    scale, _ = steps(packed.grid)
    assert scale is not None  # `refuse`: there is one
    flat = jnp.pad(x.reshape(-1, x.shape[-1]), [(0, 0), (0, packed.grid.meta.padding[0])])
    codes = packed.codes.reshape(groups * group, N)
    y: jax.Array = group_scaled.matmul(flat, codes, jnp.broadcast_to(scale, (groups, N)), interpret=interpret)
    return y.reshape(*x.shape[:-1], N).astype(x.dtype if dtype is None else dtype)


def core(codes: jax.Array, grid: Grid) -> tuple[int, int]:
    """Logical (K, N)."""
    return codes.shape[-3] * codes.shape[-2] - grid.meta.padding[0], codes.shape[-1]


def _group(grid: Grid, K: int) -> int:
    return K if grid.meta.block[0] == FULL else grid.meta.block[0]


def _pack(q: QArray, dtype: Any) -> jax.Array:
    *lead, K, N = q.codes.shape
    group = _group(q.grid, K)
    return q.codes.astype(dtype).reshape(*lead, K // group, group, N)


def _unpack(codes: jax.Array, grid: Grid) -> jax.Array:
    *lead, groups, group, N = codes.shape
    return codes.astype(grid.meta.element.code_dtype).reshape(*lead, groups * group, N)


def _layout(bits: int, dtype: Any) -> Layout:
    return Layout(
        target="tpu",
        refuse=lambda q: refuse(q, bits),
        missing=lambda: None,
        pack=lambda q: _pack(q, dtype),
        unpack=_unpack,
        core=core,
        implementations=(Implementation("mosaic", refuse_kernel, lambda *_: True, run),),
    )


LAYOUTS = {"tpu.int4.1": _layout(4, jnp.int4), "tpu.int8.1": _layout(8, jnp.int8)}
