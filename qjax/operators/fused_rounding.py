"""Inputs rounded to integers inside the product that takes them, and rotated there before: on TPUs, scales by token.

`Pre(Quantize, q)` by codes writes the codes of x and reads them again; here the kernel of
`qjax.kernels.tpu.dynamic_products` reads x once. Codes and scales are those of `Quantize`, bit for bit. With a Hadamard
rotation in front, `Pre(Hadamard, Pre(Quantize, q))` (QuaRot's down projection, catalogue H2), x stays in float32
between the two, where XLA's rotation rounds to the type of x.
"""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax import Array

from qjax.formats import rules
from qjax.formats.format import Format
from qjax.formats.integer import Int
from qjax.operators.maps.hadamard import Hadamard
from qjax.operators.maps.quantize import Quantize
from qjax.quantization import steps


def refuse(T: Quantize, rotation: Any, K: int) -> str | None:
    """Why the kernel cannot round K channels as T does, behind a rotation or None, or None."""
    if T.grid is not None or T.outer is not None or T.range is not None:
        return "the input has calibrated scales or an estimated range: it finds those of the token's largest magnitude"
    fmt = T.format
    if not isinstance(fmt.element, Int) or not fmt.element.signed or fmt.element.bits > 8:
        return f"x has {fmt.element.name} codes: it takes signed integers of at most 8 bits"
    # The rule and its divisor may vary, all else is a scale a token.
    plain = Format(fmt.element, scale=fmt.scale, rule=fmt.rule, reach=fmt.reach)
    if fmt != plain or fmt.rule not in ("absmax", "half") or fmt.scale not in ("bfloat16", "float32"):
        return f"{fmt.name} is no symmetric format with a scale a token, by absmax and stored as bfloat16 or float32"
    return None if rotation is None else refuse_rotation(rotation) or _refuse_size(rotation, K)


def refuse_rotation(rotation: Hadamard | None) -> str | None:
    """Why no kernel turns x so, whatever the size, or None."""
    if rotation is None:
        return None
    if rotation.backwards:
        return "the rotation is an inverse, which the kernel does not apply"
    return None if rotation.sylvester else "the rotation's powers of two are not Sylvester's (`sylvester=True`)"


def _refuse_size(rotation: Hadamard, K: int) -> str | None:
    from qjax.kernels.tpu import hadamard  # Pallas takes a second to import

    if rotation.batch_shape:
        return f"the rotation has batch axes {rotation.batch_shape}"
    return hadamard.refuse(K, rotation.size)


def rule(fmt: Format) -> Any:
    """The `dynamic_products.Rule` of a format that `refuse` lets pass."""
    from qjax.kernels.tpu.dynamic_products import Rule

    e = fmt.element
    assert isinstance(fmt.scale, str)  # `refuse`
    divisor = (2**e.bits - 1) / 2 if fmt.rule == "half" else e.max if fmt.reach is None else fmt.reach
    return Rule(divisor, e.min, e.max, fmt.scale, *rules.limits(fmt.scale, max(abs(e.min), abs(e.max))))


def run(x: Array, T: Quantize, op: Any, rotation: Hadamard | None, interpret: Any = False) -> Array:
    """Rows of x [M, K], turned, rounded and multiplied with the codes [K, N] of op: float32 [M, N]."""
    from qjax.kernels.tpu import dynamic_products

    (scale, _), N = steps(op.grid), op.shape[-1]
    assert scale is not None  # integers have scales
    x = x if x.dtype == jnp.bfloat16 else x.astype(jnp.float32)
    turn = {} if rotation is None else {"signs": rotation.signs, "size": rotation.size}
    codes, columns = op.codes.reshape(-1, N), jnp.broadcast_to(scale[0], (N,))
    y: Array = dynamic_products.matmul(x, codes, columns, None, interpret, rule=rule(T.format), **turn)
    return y


def prefer() -> bool:
    """Whether this chip is faster so than with codes of x that XLA makes: not 7x, whose unit has no integers."""
    from qjax.kernels.tpu import tiles

    return tiles.chip() != "7x"
