"""ByUse(take, dot): a tied leaf that is looked up one way and multiplied another."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from qjax import dispatch
from qjax.nodes import node
from qjax.operators.operator import Operator


@node
@dataclass(frozen=True, eq=False)
class ByUse(Operator):
    """A tied embedding [D, V]: `take` answers rows (the lookup), `dot` answers everything else (the head).

    The two may differ in format, in activation quantization, or in rounding. The law holds for `dot`.
    """

    take: Any
    dot: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return self.dot.shape

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.dot.dtype)

    def matmul(self, x: jax.Array, *, dtype: Any = None, implementation: str | None = None) -> jax.Array:
        return dispatch.matmul(x, self.dot, dtype=dtype, implementation=implementation)

    def affine(self) -> tuple[jax.Array, jax.Array | None]:
        return dispatch.affine(self.dot)

    def rows(self, ids: jax.Array) -> jax.Array:
        return dispatch.rows(self.take, ids)

    def transpose(self) -> Any:
        return dispatch.transpose(self.dot)

    def outputs(self, start: Any, size: int) -> ByUse | None:
        take, dot = (dispatch.outputs(op, start, size) for op in (self.take, self.dot))
        return None if take is None or dot is None else ByUse(take, dot)
