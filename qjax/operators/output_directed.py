"""OutputDirected(op, threshold; format, high): all bits only where the upper ones promise a large output."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qjax import dispatch
from qjax.formats.format import Format
from qjax.formats.integer import Int
from qjax.nodes import node
from qjax.operators.operator import NotAffine, Operator
from qjax.qarray import QArray
from qjax.quantization import dequantize, quantize


@node
@dataclass(frozen=True, eq=False)
class OutputDirected(Operator):
    """y = Q(x) @ op where |p| >= threshold, else p: the product of the `high` upper bits of both sides.

    Codes of op and of x in `format` are signed integers without a zero point; p takes codes whose lower bits are zero.
    Hardware would add the missing products to p; here both are taken, so that nothing is saved. `threshold` is a scalar
    for each entry of op's batch axes. No matrix describes it.

    Source: Output-Directed Dynamic Quantization (ICPP 2023), which predicts with two bits; catalogue G25.
    """

    op: QArray
    threshold: jax.Array
    format: Format = field(metadata={"static": True})
    high: int = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.op.shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.op.dtype)

    def matmul(self, x: jax.Array, *, dtype: Any = None, implementation: str | None = None) -> jax.Array:
        whole, upper = parts(x, self.op, self.format, self.high, implementation)
        lowest = self.threshold.reshape(self.threshold.shape + (1,) * (upper.ndim - self.threshold.ndim))
        y = jnp.where(jnp.abs(upper) >= jnp.broadcast_to(lowest, upper.shape), whole, upper)
        return y.astype(x.dtype if dtype is None else dtype)

    def affine(self) -> tuple[jax.Array, jax.Array | None]:
        raise NotAffine(f"OutputDirected({self.format.name}) rounds activations; no matrix describes it")


def parts(
    x: jax.Array, op: QArray, format: Format, high: int, implementation: str | None = None
) -> tuple[jax.Array, jax.Array]:
    """The products of all bits and of the `high` upper ones: x [batch..., tokens..., K] with op [batch..., K, N]."""
    q = quantize(x.reshape(-1, x.shape[-1]), format, axis=-1)

    def product(q: QArray, op: QArray) -> jax.Array:
        return dispatch.matmul(dequantize(q).reshape(x.shape), op, dtype=jnp.float32, implementation=implementation)

    return product(q, op), product(upper_bits(q, high), upper_bits(op, high))


def upper_bits(q: QArray, high: int) -> QArray:
    """Signed integer codes with all but their `high` upper bits zero.

    Raises:
        ValueError: a format of other codes or with a zero point, or as few bits as that.

    >>> q = quantize(jnp.array([[7.0, 5.0, 2.0, -1.0]]), "int4_f32", axis=-1)
    >>> q.codes.tolist(), upper_bits(q, 2).codes.tolist()
    ([[7, 5, 2, -1]], [[4, 4, 0, -4]])
    """
    element = q.meta.element
    if not isinstance(element, Int) or not element.signed or q.meta.offset is not None or not 0 < high < element.bits:
        raise ValueError(f"the {high} upper bits of {element.name} codes: give signed integers of more, no zero point")
    low = element.bits - high
    return dataclasses.replace(q, codes=(q.codes >> low) << low)
