"""Products of codes with codes: a rounded input in front of a rounded weight, where a chip multiplies both as they are.

Elsewhere, and for formats that no chip multiplies, `Pre` dequantizes its input and the weight takes it as floats. By
codes the sums are those of exact operands: the values of x are not rounded to its dtype on their way. One way rounds x
inside the product, and one rotates it there before (`fused_rounding`).

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
from qjax.operators import block_scaled_codes, fused_rounding, narrow_codes, row_scaled_codes
from qjax.operators.grouped import whole
from qjax.operators.maps.hadamard import Hadamard
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
    run: Callable[..., Array]  # (codes of x [T, K], weight [K, N]) -> float32 [T, N]; fused: (x, T, weight, rotation)
    fused: bool = False  # whether it rounds x itself
    prefer: Callable[[], bool] = lambda: True  # whether it is taken before those that come after it


def refusals(T: Any, op: Any, platform: str, dtype: Any = jnp.float32, rotation: Any = None) -> dict[str, str | None]:
    """Why each way cannot take x of `dtype` through T and op on a platform, or None; {} where nothing is rounded.

    With a rotation in front of T, of the ways that turn x themselves.
    """
    if not isinstance(T, Quantize) or not isinstance(op, (QArray, Packed)):
        return {}
    if rotation is not None and not isinstance(rotation, Hadamard):
        return {}
    joints = JOINTS if rotation is None else (TURNED,)
    found = {joint.name: joint.elsewhere(platform) for joint in joints}
    if all(found.values()):
        return found
    if op.batch_shape or T.batch_shape:
        return {name: why or "the weight has batch axes: take one entry at a time" for name, why in found.items()}
    K = op.shape[-2]
    x = jax.eval_shape(T.codes, jax.ShapeDtypeStruct((2, K), dtype))

    def why(joint: Joint) -> str | None:
        own = fused_rounding.refuse(T, rotation, K) if joint.fused else None
        return found[joint.name] or own or joint.refuse(x, op)

    return {joint.name: why(joint) for joint in joints}


def first(found: dict[str, str | None]) -> str | None:
    """The name of the way taken where none is asked for: the first that can run, preferred ones before others."""
    able = [joint for joint in (TURNED, *JOINTS) if joint.name in found and found[joint.name] is None]
    return next((joint.name for joint in (*(j for j in able if j.prefer()), *able)), None)


def chosen(T: Any, op: Any, name: str | None, dtype: Any, rotation: Any = None) -> Joint | None:
    """The way called `name`, or the first that can run; None where x is to be dequantized, or turned in front.

    ValueError where the named one cannot run; names of other implementations are the weight's affair.
    """
    found = refusals(T, op, jax.default_backend(), dtype, rotation)
    if name is not None and found.get(name):
        raise ValueError(f"implementation {name!r} cannot run {type(op).__name__} {op.shape}: {found[name]}")
    if name is None and rotation is not None and not TURNED.prefer():
        return None
    name = first(found) if name is None else name
    return next((joint for joint in (TURNED, *JOINTS) if joint.name == name and name in found), None)


def matmul(joint: Joint, x: Array, T: Any, op: Any, dtype: Any = None, rotation: Any = None) -> Array:
    """op(T(x)) for a `Quantize` T and x [tokens..., K], with the gradients of the product that dequantizes both.

    With a rotation op(T(rotation(x))).
    """

    @jax.custom_vjp
    def by_codes(x: Array, T: Any, op: Any, rotation: Any) -> Array:
        return joint.run(x, T, op, rotation) if joint.fused else joint.run(T.codes(x), op)

    def plain(x: Array, T: Any, op: Any, rotation: Any) -> Array:
        turned = x if rotation is None else rotation.apply(x)
        return product(T.apply(turned), dispatch.dense(op), jnp.float32)

    def backward(kept: tuple[Array, Any, Any, Any], dy: Array) -> Any:
        return jax.vjp(plain, *kept)[1](dy)

    by_codes.defvjp(lambda *operands: (by_codes(*operands), operands), backward)
    rows = x.reshape(math.prod(x.shape[:-1]), x.shape[-1])
    y = by_codes(rows, T, op, rotation) if rows.shape[0] else jnp.zeros((0, op.shape[-1]), jnp.float32)
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
    """Signed codes [T, K] and [K, N] under a scale a row and a column: by the kernel, or XLA where that is faster."""
    from qjax.kernels.tpu import integer_products, tiles

    (x_scale, _), (scale, _), N = steps(x), steps(op.grid), op.shape[-1]
    assert x_scale is not None and scale is not None  # `refuse`: integers have scales
    rows, columns = jnp.broadcast_to(x_scale[:, 0], x.shape[:1]), jnp.broadcast_to(scale[0], (N,))
    operands = x.codes, op.codes.reshape(-1, N), rows, columns
    if not integer_products.prefer(x.shape[0], tiles.chip()):
        return integer_products.reference(*operands)
    return integer_products.matmul(*operands, interpret=interpret)


_FUSED = Joint(
    "dynamic", narrow_codes.refuse_platform, _refuse_integers, fused_rounding.run, True, fused_rounding.prefer
)
TURNED = _FUSED._replace(name="hadamard")
JOINTS = (
    _FUSED,
    Joint("integers", narrow_codes.refuse_platform, _refuse_integers, integers),
    Joint("row_scaled", row_scaled_codes.refuse_platform, row_scaled_codes.refuse, row_scaled_codes.run),
    Joint("block_scaled", block_scaled_codes.refuse_platform, block_scaled_codes.refuse, block_scaled_codes.run),
)
