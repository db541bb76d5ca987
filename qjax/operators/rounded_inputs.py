"""Products of codes with codes: a rounded input in front of a rounded weight, where a chip multiplies both as they are.

Elsewhere, and for formats that no chip multiplies, `Pre` dequantizes its input and the weight takes it as floats. By
codes the sums are those of exact operands: the values of x are not rounded to its dtype on their way.

Scales a token and an output: W8A8 of LLM.int8 (catalogue C5), and E4M3. Scales of blocks: MXFP4, MXFP8 and NVFP4 (A19,
A20).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from qjax import dispatch
from qjax.formats.integer import Int
from qjax.operators import block_scaled_codes, narrow_codes, row_scaled_codes
from qjax.operators.grouped import whole
from qjax.operators.maps.quantize import Quantize
from qjax.operators.operator import product
from qjax.operators.packed import Packed
from qjax.qarray import FULL, QArray
from qjax.quantization import steps


class Joint(NamedTuple):
    """One way to multiply the codes of a rounded input with those of a weight."""

    name: str
    elsewhere: Callable[[str], str | None]  # platform -> why it cannot run there, or None
    refuse: Callable[[QArray, Any], str | None]  # (codes of x, weight) -> why not, or None
    run: Callable[[QArray, Any], Array]  # (codes of x [T, K], weight [K, N]) -> float32 [T, N]


def refusals(T: Any, op: Any, platform: str, dtype: Any = jnp.float32) -> dict[str, str | None]:
    """Why each way cannot take x of `dtype` through T and op on a platform, or None; {} where nothing is rounded."""
    if not isinstance(T, Quantize) or not isinstance(op, (QArray, Packed)):
        return {}
    found = {joint.name: joint.elsewhere(platform) for joint in JOINTS}
    if all(found.values()):
        return found
    if op.batch_shape or T.batch_shape:
        return {name: why or "the weight has batch axes: take one entry at a time" for name, why in found.items()}
    x = jax.eval_shape(T.codes, jax.ShapeDtypeStruct((2, op.shape[-2]), dtype))
    return {joint.name: found[joint.name] or joint.refuse(x, op) for joint in JOINTS}


def chosen(T: Any, op: Any, name: str | None, dtype: Any) -> Joint | None:
    """The way called `name`, or the first that can run; None where x is to be dequantized.

    ValueError where the named one cannot run; names of other implementations are the weight's affair.
    """
    found = refusals(T, op, jax.default_backend(), dtype)
    if name is not None:
        if found.get(name):
            raise ValueError(f"implementation {name!r} cannot run {type(op).__name__} {op.shape}: {found[name]}")
        return next((joint for joint in JOINTS if joint.name == name and name in found), None)
    return next((joint for joint in JOINTS if joint.name in found and found[joint.name] is None), None)


def matmul(joint: Joint, x: Array, T: Any, op: Any, dtype: Any = None) -> Array:
    """op(T(x)) for a `Quantize` T and x [tokens..., K], with the gradients of the product that dequantizes both."""

    @jax.custom_vjp
    def by_codes(x: Array, T: Any, op: Any) -> Array:
        return joint.run(T.codes(x), op)

    def backward(kept: tuple[Array, Any, Any], dy: Array) -> Any:
        return jax.vjp(lambda x, T, op: product(T.apply(x), dispatch.dense(op), jnp.float32), *kept)[1](dy)

    by_codes.defvjp(lambda *operands: (by_codes(*operands), operands), backward)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    y = by_codes(rows, T, op) if rows.shape[0] else jnp.zeros((0, op.shape[-1]), jnp.float32)
    return y.reshape(*x.shape[:-1], op.shape[-1]).astype(x.dtype if dtype is None else dtype)


def _refuse_integers(x: QArray, op: Any) -> str | None:
    if isinstance(op, Packed) and op.layout != "tpu.int8.1":
        return f"its codes are packed as {op.layout}"
    meta = op.grid.meta
    for name, side in (("x", x.meta), ("the weight", meta)):
        if not isinstance(side.element, Int) or not side.element.signed or side.element.bits > 8:
            return f"{name} has {side.element.name} codes: it takes signed integers of at most 8 bits"
        if side.offset is not None:
            return f"{name} has a {side.offset}: it takes scales alone"
    K, N = op.shape
    if not whole(x.meta, -1, K) or not whole(meta, -2, K) or (x.meta.block[0] not in (1, FULL)):
        return f"blocks {x.meta.block} of x and {meta.block} of the weight are not a scale a token and an output"
    from qjax.kernels.tpu import integer_products, tiles  # Pallas takes a second to import

    return integer_products.refuse(K, N, 8, tiles.chip())


def integers(x: QArray, op: Any, interpret: Any = False) -> Array:
    """Signed codes [T, K] and [K, N] under a scale a row and a column."""
    from qjax.kernels.tpu import integer_products

    (x_scale, _), (scale, _), N = steps(x), steps(op.grid), op.shape[-1]
    assert x_scale is not None and scale is not None  # `refuse`: integers have scales
    rows, columns = jnp.broadcast_to(x_scale[:, 0], x.shape[:1]), jnp.broadcast_to(scale[0], (N,))
    return integer_products.matmul(x.codes, op.codes.reshape(-1, N), rows, columns, interpret=interpret)


JOINTS = (
    Joint("integers", narrow_codes.refuse_platform, _refuse_integers, integers),
    Joint("row_scaled", row_scaled_codes.refuse_platform, row_scaled_codes.refuse, row_scaled_codes.run),
    Joint("block_scaled", block_scaled_codes.refuse_platform, block_scaled_codes.refuse, block_scaled_codes.run),
)
