"""Four-bit integers for the Hopper kernel: codes as words in the order of WGMMA's operand, and when it reads them.

Weights that are dequantized in registers on their way to the tensor core: catalogue V1.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from qjax.formats.integer import Int
from qjax.operators import grouped
from qjax.operators.implementations import Implementation, Layout
from qjax.operators.narrow_codes import OLDEST_JAX
from qjax.qarray import FULL, Grid, QArray
from qjax.quantization import steps

NAME = "gpu.wgmma_words.1"
CAPABILITY = "9.0"  # of Hopper, the one generation that has WGMMA


def refuse(q: QArray) -> str | None:
    """Why words cannot hold q, or None."""
    from qjax.kernels.gpu import group_scaled  # Pallas takes a second to import

    why = grouped.refuse_groups(q)
    if why is not None:
        return why
    element = q.meta.element
    if not isinstance(element, Int) or not element.signed or element.bits > 4:
        return f"{element.name} codes do not fit int4"
    if q.meta.offset is not None:
        return f"it has a {q.meta.offset} a group: the kernel takes scales alone"
    K, N = q.codes.shape[-2:]
    return group_scaled.refuse(K, N, _group(q.grid, K))


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

    words, grid = packed.codes, packed.grid
    K, N = words.shape[-3] * words.shape[-1] * group_scaled.LANES, words.shape[-2]
    scale, _ = steps(grid)
    assert scale is not None  # `refuse`: there is one
    flat = jnp.pad(x.reshape(-1, x.shape[-1]), [(0, 0), (0, grid.meta.padding[0])])
    scale = jnp.broadcast_to(scale, (K // _group(grid, K), N))
    dtype = jnp.dtype(x.dtype if dtype is None else dtype)
    stored = dtype if dtype == jnp.bfloat16 else jnp.float32
    y: jax.Array = group_scaled.matmul(flat, words, scale, None, interpret, stored)
    return y.reshape(*x.shape[:-1], N).astype(dtype)


def core(words: jax.Array, grid: Grid) -> tuple[int, int]:
    """Logical (K, N)."""
    from qjax.kernels.gpu import group_scaled

    *_, blocks, N, count = words.shape
    return blocks * count * group_scaled.LANES - grid.meta.padding[0], N


def _group(grid: Grid, K: int) -> int:
    return K if grid.meta.block[0] == FULL else grid.meta.block[0]


def _pack(q: QArray) -> jax.Array:
    from qjax.kernels.gpu import group_scaled

    return group_scaled.pack(q.codes, group_scaled.depth(_group(q.grid, q.codes.shape[-2])))


def _unpack(words: jax.Array, grid: Grid) -> jax.Array:
    from qjax.kernels.gpu import group_scaled

    return group_scaled.unpack(words, grid.meta.element.code_dtype)


LAYOUT = Layout(
    target="gpu",
    refuse=refuse,
    missing=lambda: None,
    pack=_pack,
    unpack=_unpack,
    core=core,
    columns=lambda words, ids: jnp.take(words, ids, axis=-2),
    implementations=(Implementation("wgmma", refuse_kernel, lambda *_: True, run),),
)
