"""A leaf on its way through a function: which axes of the stored leaf the value at hand is made of."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qjax.dispatch import scannable, transpose
from qjax.nodes import node
from qjax.operators import atoms
from qjax.operators.view import View
from qjax.qarray import QArray

SCANNED = "scanned"  # the axis was sliced by a scan: one layer at a time
TRACED = "traced"  # the axis was indexed by a traced number: its entries cannot be told apart


@dataclasses.dataclass(frozen=True)
class Source:
    """Where a value comes from (static)."""

    path: str
    shape: tuple[int, ...]
    dtype: str
    dropped: tuple[tuple[int, int | str], ...] = ()  # (axis of the stored leaf, negative; index) of axes indexed away
    part: tuple[int, ...] = ()  # axes of which only a slice is left

    def drop(self, axis: int, index: int | str) -> Source:
        return dataclasses.replace(self, dropped=(*self.dropped, (axis, index)))

    def cut(self, axis: int) -> Source:
        return self if axis in self.part else dataclasses.replace(self, part=(*self.part, axis))


@node
@dataclasses.dataclass(frozen=True, eq=False)
class Leaf:
    """A tracked value. Plain leaves carry `value`, the array as it is now; operator leaves a lazy `view`.

    `axes` describes each axis by digits of the stored leaf's axes (`qjax.operators.atoms`).
    """

    value: Any
    view: View | None
    axes: tuple[atoms.Axis, ...] = dataclasses.field(metadata={"static": True})
    dtype: str = dataclasses.field(metadata={"static": True})
    source: Source = dataclasses.field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(atoms.size(axis) for axis in self.axes)

    @property
    def ndim(self) -> int:
        return len(self.axes)

    def to(self, **changes: Any) -> Leaf:
        return dataclasses.replace(self, **changes)

    def slice(self, dim: int, start: Any, size: int) -> Leaf | None:
        """`size` entries along one axis (`value` is left to the caller); None where the digits cannot follow."""
        if size == self.shape[dim]:
            return self
        view = None
        if self.view is not None and (view := _slice(self.view, dim, start, size)) is None:
            return None
        if len(self.axes[dim]) != 1 or self.axes[dim][0][1] != 1:
            return None
        axis, _, _ = self.axes[dim][0]
        index = start if isinstance(start, int) else TRACED
        if size == 1 and axis not in self.source.part:
            kept, source = (), self.source.drop(axis, index)
        else:
            kept, source = ((axis, 1, size),), self.source.cut(axis)
        return self.to(view=view, axes=(*self.axes[:dim], kept, *self.axes[dim + 1 :]), source=source)


def _slice(view: View, dim: int, start: Any, size: int) -> View | None:
    if dim == 0 and size == 1 and isinstance(start, int) and leads(view) and scannable(view) is None:
        entry = view.index(start)  # layers of unlike structure: a number picks one
        return dataclasses.replace(entry, axes=((), *entry.axes))
    if (cut := view.slice(dim, start, size)) is not None or not isinstance(view.op, QArray):
        return cut
    rank = len(view.op.shape)
    if len(view.op.meta.block) != 2 or view.live[dim] != ((-2, 1, view.op.shape[-2]),):
        return None
    turned = {-2: -1, -1: -2}  # a bare [N, K] array: its outputs are sliced once they are the operator's own
    axes = tuple(tuple((turned.get(a, a), s, n) for a, s, n in axis) for axis in view.live)
    whole = dataclasses.replace(view, op=transpose(view.op), axes=axes)
    return whole.slice(dim, start, size) if rank == len(view.live) else None


def leads(view: View) -> bool:
    """Whether the view's first axis is the whole first batch axis of its operator."""
    rank = len(view.op.shape)
    return rank > 2 and view.live[0] == ((-rank, 1, view.op.shape[0]),)


def plain(path: str, value: Any) -> Leaf:
    """A leaf that is an array (or, when only shapes are followed, stands for one)."""
    shape, dtype = tuple(value.shape), str(value.dtype)
    return Leaf(value, None, atoms.whole(shape), dtype, Source(path, shape, dtype))


def operator(path: str, op: Any) -> Leaf:
    """A leaf that is an operator or a QArray."""
    view = View.of(op)
    shape, dtype = tuple(view.shape), str(np.dtype(view.dtype))
    return Leaf(None, view, atoms.whole(shape), dtype, Source(path, shape, dtype))


def dequantized(leaf: Leaf) -> jax.Array:
    """The array an operator leaf stands for. NotAffine or NotLinear, naming the leaf, where it stands for none."""
    assert leaf.view is not None
    try:
        return jnp.asarray(leaf.view.dense()).astype(leaf.dtype)
    except TypeError as error:
        raise type(error)(f"leaf {leaf.source.path!r}: {error}") from error
