"""View(op; axes, dtype): an operator in matrix form seen as an array of another layout."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from qjax import dispatch
from qjax.nodes import node
from qjax.operators import atoms, contraction
from qjax.operators.layout import as_matrix
from qjax.operators.operator import NotAffine, Operator, stored_bits
from qjax.qarray import QArray


@node
@dataclass(frozen=True, eq=False)
class View(Operator):
    """op [batch..., K, N] stored as an array: [out, in] kernels, head-split kernels, convolutions, embeddings.

    Both the leaf type for layouts that are not [batch..., K, N] and the value that travels through traced code:
    transposes, reshapes that cut or merge whole pieces, casts and slices stay lazy, `dot` multiplies without
    dequantizing. `axes` holds one tuple of atoms per storage axis (`qjax.operators.atoms`); `dtype` is the logical one.
    The operator may also be a bare QArray with any number of core axes: `dot` brings it to matrix form where that is
    exact.
    """

    op: Any
    axes: tuple[atoms.Axis, ...] = field(metadata={"static": True})
    dtype: np.dtype = field(metadata={"static": True})  # pyright: ignore[reportIncompatibleMethodOverride]

    @classmethod
    def of(cls, op: Any) -> View:
        """The operator in its own layout; a View is returned as it is."""
        return op if isinstance(op, View) else cls(op, atoms.whole(op.shape), np.dtype(op.dtype))

    @classmethod
    def store(cls, op: Any, shape: Sequence[int], in_axes: Sequence[int], out_axes: Sequence[int]) -> View:
        """The operator [batch..., K, N] as storage of `shape`.

        in_axes flatten (in order) to K, out_axes to N, the rest are batch in order.

        >>> import jax.numpy as jnp
        >>> View.store(jnp.ones((6, 4)), shape=(4, 2, 3), in_axes=(1, 2), out_axes=(0,)).shape
        (4, 2, 3)
        """
        rank = len(shape)
        ins, outs = [i % rank for i in in_axes], [i % rank for i in out_axes]
        rest = [i for i in range(rank) if i not in (*ins, *outs)]
        expected = (
            *(shape[i] for i in rest),
            math.prod(shape[i] for i in ins),
            math.prod(shape[i] for i in outs),
        )
        if tuple(op.shape) != expected:
            raise ValueError(f"storage {tuple(shape)} with inputs {ins}, outputs {outs} is {expected}, not {op.shape}")
        placed = dict(zip(ins, atoms.split(-2, [shape[i] for i in ins]), strict=True))
        placed |= dict(zip(outs, atoms.split(-1, [shape[i] for i in outs]), strict=True))
        placed |= {i: (j - op.ndim, 1, shape[i]) for j, i in enumerate(rest)}
        return cls(op, tuple((placed[i],) for i in range(rank)), np.dtype(op.dtype))

    @property
    def live(self) -> tuple[atoms.Axis, ...]:
        """The storage axes still there: `vmap` and `scan` slice batch axes off op behind this record's back."""
        rank = len(self.op.shape)
        return tuple(axis for axis in self.axes if all(-a[0] <= rank for a in axis))

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(atoms.size(axis) for axis in self.live)

    # ---- layouts: exact, lazy; None where the result is no view

    def permute(self, order: Sequence[int]) -> View:
        """Storage axes in another order."""
        live = self.live
        return replace(self, axes=tuple(live[i] for i in order))

    def reshape(self, shape: Sequence[int]) -> View | None:
        """Another shape of the same elements; None where an axis would be cut unevenly."""
        axes = atoms.reshape(self.live, shape) if math.prod(shape) == math.prod(self.shape) else None
        return None if axes is None else replace(self, axes=axes)

    def astype(self, dtype: Any) -> View:
        """Another logical dtype; nothing is computed."""
        return replace(self, dtype=np.dtype(dtype))

    def slice(self, axis: int, start: Any, size: int) -> View | None:
        """`size` entries of one storage axis from `start` (int or traced): whole batch axes and whole outputs only."""
        axis %= len(self.shape)
        if size == self.shape[axis]:
            return self
        live, rank = self.live, len(self.op.shape)
        if len(live[axis]) != 1 or live[axis][0][1:] != (1, self.op.shape[live[axis][0][0]]):
            return None
        place = live[axis][0][0]
        batch_axes = rank - (len(self.op.meta.block) if isinstance(self.op, QArray) else 2)
        if place + rank < batch_axes:
            op = slice_batch(self.op, start, size, place + rank)
        elif place == -1 and rank - batch_axes == 2:
            op = dispatch.outputs(self.op, start, size)
        else:
            op = None
        if op is None:
            return None
        return View(op, (*live[:axis], ((place, 1, size),), *live[axis + 1 :]), self.dtype)

    # ---- values

    def affine(self) -> tuple[jax.Array, jax.Array | None]:
        if len(self.shape) < 2:
            raise NotAffine(f"a View of shape {self.shape} is no matrix")
        return self.dense(), None

    def dense(self) -> jax.Array:
        """The array it stands for, in the logical dtype; NotAffine or NotLinear where that would lose something."""
        pieces = [a for axis in self.live for a in axis]
        order = atoms.by_operator(pieces)
        w = dispatch.dense(self.op).reshape([pieces[k][2] for k in order])
        return jnp.transpose(w, np.argsort(order).tolist()).reshape(self.shape).astype(self.dtype)

    def matmul(self, x: jax.Array, *, dtype: Any = None, implementation: str | None = None) -> jax.Array:
        nb, nx = len(self.shape) - 2, x.ndim
        y = self.dot(x, ((nb,), (nx - 1,)), (range(nb), range(nb)), dtype=dtype, implementation=implementation)
        return dispatch.product(x, self.dense(), dtype) if y is None else y

    def dot(
        self,
        x: jax.Array,
        contract: tuple[Sequence[int], Sequence[int]],
        batch: tuple[Sequence[int], Sequence[int]] = ((), ()),
        *,
        view_first: bool = False,
        dtype: Any = None,
        implementation: str | None = None,
    ) -> jax.Array | None:
        """dot_general with x: (view axes, x axes) contracted and batched; None where only a dequantized view could.

        The result is [batch..., x free..., view free...], or [batch..., view free..., x free...] with `view_first`.
        Batch axes of the operator may be batched, free (x is shared by all entries) or contracted (entries are summed).
        """
        view = self
        if isinstance(self.op, QArray):
            view = self.canonical([i % len(self.shape) for i in contract[0]])
        if view is None:
            return None
        plan = contraction.plan(view.op, view.live, x.shape, contract, batch)
        if plan is None:
            return None
        y = dispatch.matmul(plan.operand(x), plan.op, dtype=dtype, implementation=implementation)
        return plan.result(y, view_first)

    def take(self, ids: jax.Array, axis: int = 0) -> jax.Array | None:
        """Entries ids of one storage axis as an array, [..., *ids.shape, ...]: only what is taken is dequantized.

        The axis must be the operator's whole outputs, or its whole inputs; None otherwise.
        """
        axis %= len(self.shape)
        live, op = self.live, self.op
        if isinstance(op, QArray) and len(op.meta.block) != 2:
            canonical = self.canonical([i for i in range(len(live)) if i != axis])
            if canonical is None:
                return None
            live, op = canonical.live, canonical.op
        if len(live[axis]) != 1 or live[axis][0][1:] != (1, op.shape[live[axis][0][0]]):
            return None
        place = live[axis][0][0]
        if place < -2:
            return None
        taken = dispatch.rows(op if place == -1 else dispatch.transpose(op), ids.reshape(-1))
        if place == -1:
            taken = jnp.swapaxes(taken, -1, -2)
        axes = (*live[:axis], ((place, 1, ids.size),), *live[axis + 1 :])
        w = View(taken, axes, self.dtype).dense()
        return w.reshape(*w.shape[:axis], *ids.shape, *w.shape[axis + 1 :])

    def canonical(self, contracted: Sequence[int]) -> View | None:
        """This view with its bare QArray in matrix form, these storage axes its inputs; None where not exact."""
        q, live = self.op, self.live
        rank = len(q.shape)
        batch = rank - len(q.meta.block)
        inner = sorted({a[0] for i in contracted for a in live[i]})
        outer = sorted({a[0] for i in range(len(live)) if i not in contracted for a in live[i]})
        if set(inner) & set(outer):
            return None
        if len(q.meta.block) == 2:
            return self
        core = range(batch - rank, 0)
        matrix = as_matrix(q, [i for i in core if i in inner], [i for i in core if i not in inner])
        if matrix is None:
            return None
        stored = View.store(
            matrix, q.shape, [i + rank for i in core if i in inner], [i + rank for i in core if i not in inner]
        )
        return replace(stored, axes=tuple(_within(axis, stored.axes, rank) for axis in live), dtype=self.dtype)

    # ---- the operator's other rules, in terms of storage axes

    def rows(self, ids: jax.Array) -> jax.Array:
        taken = self.take(ids, axis=len(self.shape) - 1)
        if taken is None:
            return Operator.rows(self, ids)
        lead = len(self.shape) - 2
        return jnp.moveaxis(taken, lead, -1)

    def transpose(self) -> View:
        rank = len(self.shape)
        return self.permute((*range(rank - 2), rank - 1, rank - 2))

    def outputs(self, start: Any, size: int) -> View | None:
        return self.slice(len(self.shape) - 1, start, size)

    def index(self, i: Any) -> Any:
        live, rank = self.live, len(self.op.shape)
        if live[0] == ((-rank, 1, self.op.shape[0]),) and rank > 2:
            return View(dispatch.index(self.op, i), live[1:], self.dtype)
        return lax.dynamic_index_in_dim(self.dense(), i, keepdims=False)

    def children(self) -> dict[str, Any]:
        return {"op": self.op}

    def bits(self) -> float:
        return stored_bits(self.op)


def _within(axis: atoms.Axis, stored: tuple[atoms.Axis, ...], rank: int) -> atoms.Axis:
    """Atoms over a QArray's axes rewritten over the matrix they were flattened to."""
    pieces = []
    for place, stride, length in axis:
        (target, step, _) = stored[place + rank][0]
        pieces.append((target, step * stride, length))
    return atoms.merge(pieces)


def slice_batch(op: Any, start: Any, size: int, axis: int) -> Any:
    """`size` entries of batch axis `axis` of every array below op; arrays shared along it stay."""

    def cut(leaf: jax.Array) -> jax.Array:
        return leaf if leaf.shape[axis] == 1 else lax.dynamic_slice_in_dim(leaf, start, size, axis)

    return jax.tree.map(cut, op) if dispatch.scannable(op) is not None else None
