"""Products whose inputs are rounded to int8 as they come: a scale a token, found from the token itself.

Dynamic quantization per token with symmetric int8 (LLM.int8, Dettmers et al. 2022, catalogue C5; ZeroQuant, Yao et al.
2022): nothing is calibrated. On a TPU the rounding is fused in front of the integer product.
"""

from __future__ import annotations

import math
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from qjax.formats.integer import Int
from qjax.integer.execution import operand
from qjax.operators.fused_rounding import refuse_rotation
from qjax.operators.maps.hadamard import Hadamard
from qjax.operators.narrow_codes import refuse_platform
from qjax.qarray import FULL, QArray


def dynamic_matmul(
    x: Array, w: QArray, *, rotation: Hadamard | None = None, implementation: Literal["xla", "mosaic"] | None = None
) -> Array:
    """x [..., K] floating, rounded to int8 with a scale a row, times w [K, N] of int8 codes: float32 [..., N].

    A row's scale is its largest magnitude over 127; the sums of codes are exact in int32 and meet the scales in
    float32. A row of zeros gives zeros; one with an infinity or a NaN gives NaN and leaves the others alone. Gradients
    are those of the product with x as it was before rounding, with respect to x and to the scales of w. "mosaic" is
    the kernel of `qjax.kernels.tpu.dynamic_products`, fused; with None it is taken where it can run.

    `rotation` turns the rows in float32 before they are rounded (QuaRot's down projection, catalogue H2). The kernel
    takes Sylvester's, forwards, in blocks of m * 128 * 2^k channels, m = 1, 12, 20 or 28. Its sums reach sqrt(size)
    times the values: a row in which they pass float32 gives NaN.

    >>> from qjax.quantization import quantize
    >>> w = quantize(jnp.array([[3.0], [1.0]]), "int8_f32")
    >>> dynamic_matmul(jnp.array([[1.0, -2.0]]), w).round(1).tolist()
    [[1.0]]

    Raises:
        ValueError: an x that is not floating, a w that is not signed integers of at most 8 bits under a scale a column
            (or one for all) without zero points, shapes or a rotation that do not fit, sums that int32 may not hold,
            or a named implementation that cannot run, and why.
    """
    from qjax.kernels.tpu import dynamic_products, tiles  # Pallas takes a second to import

    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"dynamic_matmul: x is {x.dtype}; expected a floating type, which it rounds itself")
    if len(w.shape) != 2 or x.ndim < 1 or x.shape[-1] != w.shape[0]:
        raise ValueError(f"dynamic_matmul: product of {x.shape} and {w.shape}: expected [..., K] and [K, N]")
    element, K, N = w.meta.element, *w.shape
    if not isinstance(element, Int) or not element.signed or element.bits > 8 or w.meta.offset is not None:
        raise ValueError(f"dynamic_matmul: w has codes {element.name} and offset {w.meta.offset}; it takes signed int8")
    if w.meta.block[0] != FULL and w.meta.block[0] < K:
        raise ValueError(f"dynamic_matmul: w has groups of {w.meta.block[0]} inputs; it takes a scale a column")
    if rotation is not None and (K % rotation.size or rotation.batch_shape):
        raise ValueError(
            f"dynamic_matmul: a rotation by blocks of {rotation.size} with batch axes {rotation.batch_shape} does not"
            f" fit {K} channels; it takes blocks that divide them, and one rotation"
        )
    if K * 2**14 >= 2**31:
        raise ValueError(f"dynamic_matmul: the sum of {K} products of int8 may overflow int32")
    why = refuse_platform(jax.default_backend()) or refuse_rotation(rotation)
    why = why or dynamic_products.refuse(K, N, tiles.chip(), None if rotation is None else rotation.size)
    if implementation == "mosaic" and why is not None:
        raise ValueError(f"dynamic_matmul: the kernel 'mosaic' cannot run: {why}")
    side = operand(w, "w", K, True)
    fused = why is None and implementation != "xla"

    def product(x: Array, codes: Array, scale: Array, rotation: Hadamard | None) -> Array:
        if not fused:
            return dynamic_products.reference(_turned(x, rotation), codes, scale)
        if rotation is None:
            return dynamic_products.matmul(x, codes, scale)
        return dynamic_products.matmul(x, codes, scale, signs=rotation.signs, size=rotation.size)

    rows = x.reshape(math.prod(x.shape[:-1]), K)
    rows = rows if rows.dtype == jnp.bfloat16 else rows.astype(jnp.float32)
    y = _straight(product, rows, side.codes[0].T, side.scale[0].astype(jnp.float32), rotation)
    return y.reshape(*x.shape[:-1], N)


def _turned(x: Array, rotation: Hadamard | None) -> Array:
    return x if rotation is None else rotation.apply(x.astype(jnp.float32))


def _straight(product: Any, x: Array, codes: Array, scale: Array, rotation: Hadamard | None) -> Array:
    """`product` with the gradients of the product that does not round x."""

    @jax.custom_vjp
    def rounded(x: Array, codes: Array, scale: Array, rotation: Hadamard | None) -> Array:
        return product(x, codes, scale, rotation)

    def forward(*operands: Any) -> tuple[Array, Any]:
        return product(*operands), operands

    def backward(kept: Any, dy: Array) -> Any:
        x, codes, scale, rotation = kept

        def plain(x: Array, scale: Array) -> Array:
            matrix = codes.astype(jnp.float32) * scale[None, :]
            return jnp.dot(_turned(x, rotation).astype(jnp.float32), matrix, precision="highest")

        dx, d_scale = jax.vjp(plain, x, scale)[1](dy)
        none = jax.tree.map(lambda integers: np.zeros(integers.shape, jax.dtypes.float0), (codes, rotation))
        return dx, none[0], d_scale, none[1]

    rounded.defvjp(forward, backward)
    return rounded(x, codes, scale, rotation)
