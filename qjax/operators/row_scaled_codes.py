"""Codes of eight bits under a scale a token and an output, when Hopper's tensor cores multiply them as they are.

W8A8 of LLM.int8 (catalogue C5) and its like in E4M3. The weight is in the layout of `wgmma_words`, which serves float
inputs as well.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array, lax

from qjax.formats.elements import E4M3
from qjax.formats.integer import Int
from qjax.operators.grouped import whole
from qjax.operators.wgmma_words import CAPABILITY, E4M3_BYTES, INT8_BYTES, NAME, refuse_gpu
from qjax.qarray import FULL, QArray
from qjax.quantization import steps

DEEPEST = 2**31 // 2**14 - 1  # products of int8 whose sum is surely an int32


def refuse_platform(platform: str) -> str | None:
    """Why the kernel cannot run here, or None."""
    return refuse_gpu(platform, CAPABILITY, "WGMMA")


def refuse(x: QArray, op: Any) -> str | None:
    """Why the codes of x cannot meet those of a weight in the kernel, or None."""
    layout, K = getattr(op, "layout", None), op.shape[-2]
    if layout == NAME:
        return "WGMMA multiplies no codes of four bits: they become bfloat16 and x stays float"
    if layout not in (INT8_BYTES, E4M3_BYTES):
        return f"the weight is in neither of the layouts {INT8_BYTES} and {E4M3_BYTES}: prepare it"
    element, meta = x.meta.element, op.grid.meta
    fits = element == E4M3 if layout == E4M3_BYTES else isinstance(element, Int) and element.signed
    if not fits or element.bits > 8:
        return f"x has {element.name} codes and the weight {meta.element.name}: both are signed integers, or both e4m3"
    if x.meta.offset is not None:
        return f"x has a {x.meta.offset}: it takes scales alone"
    if len(x.scales) != 1:
        return f"x has {len(x.scales)} scales whose product counts: it takes one a token"
    if not whole(x.meta, -1, K) or not whole(meta, -2, K) or x.meta.block[0] not in (1, FULL):
        return f"blocks {x.meta.block} of x and {meta.block} of the weight are not a scale a token and an output"
    deep = layout == INT8_BYTES and K > DEEPEST
    return f"sums of {K} products can overflow int32: at most {DEEPEST}" if deep else None


def run(x: QArray, op: Any, interpret: Any = False) -> Array:
    """Codes [T, K] and those of a packed weight [K, N] under a scale a row and a column: float32 [T, N]."""
    from qjax.kernels.gpu import row_scaled  # Pallas takes a second to import

    (x_scale, _), (scale, _), N = steps(x), steps(op.grid), op.shape[-1]
    assert x_scale is not None and scale is not None  # `refuse`: there are
    left, right = x.codes, op.codes
    if op.layout == E4M3_BYTES:
        left, right = (lax.bitcast_convert_type(codes, jnp.float8_e4m3fn) for codes in (left, right))
    rows, columns = jnp.broadcast_to(x_scale[:, 0], x.shape[:1]), jnp.broadcast_to(scale[0], (N,))
    return row_scaled.matmul(left, right, rows, columns, None, interpret)
