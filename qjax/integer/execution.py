"""A product of quantized activations and weights by their codes: int32 sums, then the outer product of scales.

What fake quantization computes in floats, in integers: within a group of inputs that share scales,
sum s_x (q_x - z_x) s_w (q_w - z_w) = s_x s_w (sum q_x q_w - z_x sum q_w - z_w sum q_x + n z_x z_w), and the bracket
is exact (Jacob et al. 2018, section 2.3; catalogue A5). With a scale for each row of x and each column of w it is the
row by column scaling of LLM.int8 (catalogue C5).
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from qjax import blocks
from qjax.formats.integer import Int
from qjax.operators.narrow_codes import refuse_platform
from qjax.qarray import FULL, QArray
from qjax.quantization import steps


def integer_matmul(
    x: QArray, w: QArray, bias: Array | None = None, *, implementation: Literal["xla", "mosaic"] | None = None
) -> Array:
    """x [T, K] (blocks along K, the last axis) times w [K, N] (blocks along K, the first): float32 [T, N].

    The result is that of the dequantized arrays up to the rounding of float32 after the integer sums. Groups of x and w
    may differ where the longer is a multiple of the shorter. `bias` [N] int32 is added to the sums: `integer_bias`.
    "mosaic" is the kernel of `qjax.kernels.tpu.integer_products`, for a scale a row of x and a column of w; with None
    it is taken where it can run and is the faster (`integer_products.prefer`).

    >>> from qjax.quantization import quantize
    >>> x, w = jnp.array([[1.0, -2.0]]), jnp.array([[3.0], [1.0]])
    >>> integer_matmul(quantize(x, "int8_narrow_f32", axis=-1), quantize(w, "int8_narrow_f32")).round(1).tolist()
    [[1.0]]

    Raises:
        ValueError: codes that are not integers of at most 8 bits, an offset that is no integer zero point, shapes or
            groups that do not fit, sums that int32 may not hold, a bias on several groups, or a named implementation
            that cannot run, and why.
    """
    left, right = _operands(x, w)
    why = _refuse_kernel(x, w, bias, left) if implementation != "xla" else "xla was asked for"
    if implementation == "mosaic" and why is not None:
        raise ValueError(f"integer_matmul: the kernel 'mosaic' cannot run: {why}")
    if why is None:
        bits = 4 if x.meta.element.bits <= 4 and w.meta.element.bits <= 4 else 8
        return _by_codes(left, right, bits, implementation == "mosaic")
    if bias is not None and left.codes.shape[0] > 1:
        raise ValueError(f"integer_matmul: a bias is added to one sum, but {left.codes.shape[0]} groups have their own")

    def add(total: Array, group: tuple[Side, Side]) -> tuple[Array, None]:
        sums = _sums(*group)
        sums = sums if bias is None else sums + bias.astype(jnp.int32)[None]
        scale = group[0].scale[:, None] * group[1].scale[None, :]
        return total + sums.astype(jnp.float32) * scale, None

    start = jnp.zeros((x.shape[0], w.shape[1]), jnp.float32)
    return jax.lax.scan(add, start, (left, right))[0]


def _refuse_kernel(x: QArray, w: QArray, bias: Array | None, left: Side) -> str | None:
    """Why the TPU's kernel cannot multiply them, or None."""
    why = refuse_platform(jax.default_backend())
    if why is not None:
        return why
    if bias is not None or not all(_centred(q) for q in (x, w)):
        return "it takes signed codes without zero points, and no bias"
    if left.codes.shape[0] > 1:
        return f"it takes one group of inputs and these have {left.codes.shape[0]}"
    from qjax.kernels.tpu import integer_products, tiles

    return integer_products.refuse(*w.shape, bits=8, chip=tiles.chip())


def _centred(q: QArray) -> bool:
    return q.meta.offset is None and isinstance(q.meta.element, Int) and q.meta.element.signed


def _by_codes(x: Side, w: Side, bits: int, named: bool, interpret: bool = False) -> Array:
    """One group of signed codes: by the kernel where it is named or preferred, else by XLA's own product."""
    from qjax.kernels.tpu import integer_products, tiles  # Pallas takes a second to import

    dtype = jnp.int4 if bits == 4 else jnp.int8
    left, right = x.codes[0].astype(dtype), w.codes[0].astype(dtype).T
    if not named and bits == 8 and not integer_products.prefer(left.shape[0], tiles.chip()):
        return integer_products.reference(left, right, x.scale[0], w.scale[0])
    return integer_products.matmul(left, right, x.scale[0], w.scale[0], interpret=interpret)


def integer_sums(x: QArray, w: QArray) -> Array:
    """The exact sums of (q_x - z_x)(q_w - z_w) over each group of inputs: int32 [groups, T, N].

    `rounding.rescale` turns those of one group into the codes of the next layer without a float.

    Raises ValueError as `integer_matmul` does.
    """
    return jax.vmap(_sums)(*_operands(x, w))


def integer_bias(bias: Array, x: QArray, w: QArray) -> Array:
    """`bias` [N] as int32 [N] at the scale s_x s_w of the sums it is added to (catalogue A6), saturated.

    Raises ValueError if x has more than one scale or w more than one a column.
    """
    s_x, s_w = steps(x)[0], steps(w)[0]
    if s_x is None or s_w is None or s_x.size != 1 or s_w.shape[0] != 1:
        raise ValueError(f"a bias has one scale a column, but x has scales {_shape(s_x)} and w {_shape(s_w)}")
    values = jnp.round(bias.astype(jnp.float32) / (s_x.reshape(1) * jnp.broadcast_to(s_w[0], bias.shape)))
    # The largest float32 below 2^31.
    return jnp.clip(values, jnp.float32(-(2.0**31)), jnp.float32(2.0**31 - 128)).astype(jnp.int32)


def _shape(scale: Array | None) -> tuple[int, ...] | None:
    return None if scale is None else scale.shape


class Side(NamedTuple):
    """One operand in groups: its inputs along the last axis, everything centred so that codes fit int8.

    codes [groups, outputs, inputs] int8, zero where a group is not full; scale, zero [groups, outputs];
    members [groups]: the inputs of a group.
    """

    codes: Array
    scale: Array
    zero: Array
    members: Array


def _sums(x: Side, w: Side) -> Array:
    along = (((1,), (1,)), ((), ()))
    products = jax.lax.dot_general(x.codes, w.codes, along, preferred_element_type=jnp.int32)
    of_x, of_w = (jnp.sum(side.codes, axis=1, dtype=jnp.int32) for side in (x, w))
    z_x, z_w = x.zero[:, None], w.zero[None, :]
    return products - z_x * of_w[None, :] - of_x[:, None] * z_w + x.members * z_x * z_w


def _operands(x: QArray, w: QArray) -> tuple[Side, Side]:
    if len(x.shape) != 2 or len(w.shape) != 2 or x.shape[1] != w.shape[0]:
        raise ValueError(f"integer product of {x.shape} and {w.shape}: expected [T, K] and [K, N]")
    inputs = x.shape[1]
    sizes = [inputs if b == FULL else min(b, inputs) for b in (x.meta.block[1], w.meta.block[0])]
    size = min(sizes)
    if any(b % size and b != inputs for b in sizes):
        raise ValueError(f"integer product: groups of {sizes[0]} and {sizes[1]} inputs do not fit into each other")
    # |q - z| is at most 255, of the centred parts 128: four products of the sum stay below 2^16 each.
    if min(size, inputs) * 2**16 > 2**31:
        raise ValueError(f"integer product: {size} inputs a group may overflow int32; give groups of at most 32768")
    return operand(x, "x", size, False), operand(w, "w", size, True)


def operand(q: QArray, name: str, size: int, transposed: bool) -> Side:
    """q in groups of `size` inputs; [inputs, outputs] if `transposed`. `name` stands in what is refused: ValueError."""
    e = q.meta.element
    if not isinstance(e, Int) or e.bits > 8:
        raise ValueError(f"integer product: {name} has codes {e.name}, not integers of at most 8 bits")
    if q.meta.offset not in (None, "zero_point"):
        raise ValueError(f"integer product: {name} has offset {q.meta.offset!r}; only an integer zero point is exact")
    scale, zero = steps(q)
    assert scale is not None
    outputs, inputs = q.shape[::-1] if transposed else q.shape
    groups = -(-inputs // size)
    # Unsigned codes and their zero points move down together into int8, which leaves their difference.
    centre = 0 if e.signed else 2 ** (e.bits - 1)

    def grouped(part: Array) -> Array:
        """[outputs, groups] of one value a block."""
        codes, block = q.codes.shape, q.meta.block
        if transposed:
            part, codes, block = part.T, codes[::-1], block[::-1]
        several = (block[0], FULL if block[1] == FULL or block[1] >= inputs else block[1] // size)
        wide = part.shape[1] * (1 if several[1] == FULL else several[1])
        return blocks.enlarge(part, (codes[0], max(wide, groups)), several)[:outputs, :groups].T

    codes = (q.codes.T if transposed else q.codes)[:outputs, :inputs].astype(jnp.int32) - centre
    codes = jnp.pad(codes, ((0, 0), (0, groups * size - inputs))).astype(jnp.int8)
    members = jnp.minimum(size, inputs - size * jnp.arange(groups, dtype=jnp.int32))
    zero = (jnp.zeros_like(scale) if zero is None else zero) - centre
    return Side(
        codes.reshape(outputs, groups, size).swapaxes(0, 1), grouped(scale), grouped(zero).astype(jnp.int32), members
    )
