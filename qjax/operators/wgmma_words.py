"""Narrow codes for the Hopper kernels: each kind in a layout in the order of WGMMA's operand, and when it is read.

Weights that are dequantized in registers on their way to the tensor core: catalogue V1.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax.core import Tracer

from qjax.formats.elements import E4M3, Element
from qjax.formats.integer import Int
from qjax.operators import grouped
from qjax.operators.implementations import Implementation, Layout
from qjax.operators.narrow_codes import OLDEST_JAX
from qjax.qarray import FULL, Grid, QArray
from qjax.quantization import steps

CAPABILITY = "9.0"  # of Hopper, the one generation that has WGMMA
NAME = "gpu.wgmma_words.1"  # four bits
INT8_BYTES, E4M3_BYTES = "gpu.wgmma.int8.1", "gpu.wgmma.e4m3.1"
CODINGS = {NAME: "INT4", INT8_BYTES: "INT8", E4M3_BYTES: "E4M3"}  # of `codings`: Pallas takes a second to import


def coding(layout: str) -> Any:
    """The `codings.Coding` that the kernel reads a layout with."""
    from qjax.kernels.gpu import codings

    return getattr(codings, CODINGS[layout])


def refuse(q: QArray, layout: str) -> str | None:
    """Why a layout cannot hold q, or None."""
    why = _misfit(q.meta.element, layout) or _refuse_blocks(q)
    if why is not None:
        return why
    if q.meta.offset is not None:
        return f"it has a {q.meta.offset} a group: the kernel takes scales alone"
    if layout == E4M3_BYTES and not isinstance(q.codes, Tracer) and bool((q.codes & 127 == 127).any()):
        return "a code of it is NaN, which the kernel would take for 480"
    from qjax.kernels.gpu import group_scaled

    K, N = q.codes.shape[-2:]
    return group_scaled.refuse(K, N, _group(q.grid, K))


def _misfit(element: Element, layout: str) -> str | None:
    if layout == E4M3_BYTES:
        return None if element == E4M3 else f"{element.name} is not {E4M3.name}"
    bits = 4 if layout == NAME else 8
    fits = isinstance(element, Int) and element.signed and element.bits <= bits
    return None if fits else f"{element.name} codes do not fit int{bits}"


def _refuse_blocks(q: QArray) -> str | None:
    """Why the kernel cannot read the scales of q, or None: one a group, an output or, unlike elsewhere, the tensor."""
    meta = q.meta
    tensor = len(meta.block) == 2 and len(q.scales) == 1 and meta.block[-1] == FULL
    return None if tensor else grouped.refuse_blocks(q)


def refuse_gpu(platform: str, capability: str, what: str) -> str | None:
    """Why `what`, which GPUs of one compute capability have, cannot run here, or None."""
    if platform != "gpu":
        return f"it is compiled for gpu, not {platform}"
    if jax.__version_info__[:2] < OLDEST_JAX:
        return f"it needs jax {'.'.join(map(str, OLDEST_JAX))} or newer; this is {jax.__version__}"
    found = getattr(jax.devices()[0], "compute_capability", None) if jax.default_backend() == "gpu" else capability
    return None if found == capability else f"{what} is of compute capability {capability}; this GPU's is {found}"


def refuse_kernel(packed: Any, tokens: int, platform: str, dtype: Any) -> str | None:
    """Why the kernel cannot run this leaf, or None."""
    why = refuse_gpu(platform, CAPABILITY, "WGMMA")
    if why is not None:
        return why
    if jnp.dtype(dtype) != jnp.bfloat16:
        return f"it takes bfloat16 activations and x is {jnp.dtype(dtype)}"
    return "the weight has batch axes: take one entry at a time" if packed.batch_shape else None


def run(x: jax.Array, packed: Any, dtype: Any, interpret: Any = False) -> jax.Array:
    """The kernel on x [tokens..., K]."""
    from qjax.kernels.gpu import group_scaled

    stored, grid, kind = packed.codes, packed.grid, coding(packed.layout)
    K, N = stored.shape[-3] * stored.shape[-1] * kind.lanes, stored.shape[-2]
    scale, _ = steps(grid)
    assert scale is not None  # `refuse`: there is one
    flat = jnp.pad(x.reshape(-1, x.shape[-1]), [(0, 0), (0, grid.meta.padding[0])])
    scale = jnp.broadcast_to(scale, (K // _group(grid, K), N))
    dtype = jnp.dtype(x.dtype if dtype is None else dtype)
    result = dtype if dtype == jnp.bfloat16 else jnp.float32
    y: jax.Array = group_scaled.matmul(flat, stored, scale, None, interpret, result, kind)
    return y.reshape(*x.shape[:-1], N).astype(dtype)


def _group(grid: Grid, K: int) -> int:
    return K if grid.meta.block[0] == FULL else grid.meta.block[0]


def _pack(q: QArray, layout: str) -> jax.Array:
    from qjax.kernels.gpu import codings, group_scaled

    return codings.pack(q.codes, group_scaled.depth(_group(q.grid, q.codes.shape[-2])), coding(layout))


def _unpack(stored: jax.Array, grid: Grid, layout: str) -> jax.Array:
    from qjax.kernels.gpu import codings

    return codings.unpack(stored, coding(layout), grid.meta.element.code_dtype)


def _core(stored: jax.Array, grid: Grid, layout: str) -> tuple[int, int]:
    """Logical (K, N)."""
    *_, parts, N, count = stored.shape
    return parts * count * coding(layout).lanes - grid.meta.padding[0], N


def _layout(name: str) -> Layout:
    return Layout(
        target="gpu",
        refuse=lambda q: refuse(q, name),
        missing=lambda: None,
        pack=lambda q: _pack(q, name),
        unpack=lambda stored, grid: _unpack(stored, grid, name),
        core=lambda stored, grid: _core(stored, grid, name),
        columns=lambda stored, ids: jnp.take(stored, ids, axis=-2),
        implementations=(Implementation("wgmma", refuse_kernel, lambda *_: True, run),),
    )


LAYOUTS = {name: _layout(name) for name in CODINGS}
