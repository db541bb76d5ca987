"""Axis bookkeeping of a `View`: storage axes written as pieces of an operator's axes.

An atom (axis, stride, size) is `size` steps of `stride` along operator axis `axis` (negative, so that slicing batch
axes off the front leaves it valid). A storage axis is a tuple of atoms in row-major order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Atom = tuple[int, int, int]
Axis = tuple[Atom, ...]


def size(axis: Axis) -> int:
    """Length of a storage axis."""
    return math.prod(n for _, _, n in axis)


def whole(shape: Sequence[int]) -> tuple[Axis, ...]:
    """Every axis of an operator of this shape, unchanged."""
    return tuple(((i - len(shape), 1, n),) for i, n in enumerate(shape))


def split(axis: int, sizes: Sequence[int]) -> Axis:
    """Operator axis `axis` of length prod(sizes) cut into row-major pieces."""
    return tuple((axis, math.prod(sizes[i + 1 :]), n) for i, n in enumerate(sizes))


def merge(atoms: Sequence[Atom]) -> Axis:
    """Neighbours that continue each other joined into one; pieces of size 1 dropped unless nothing else is left."""
    kept: list[Atom] = []
    for axis, stride, n in [a for a in atoms if a[2] != 1] or list(atoms[:1]):
        if kept and kept[-1][0] == axis and kept[-1][1] == stride * n:
            n *= kept.pop()[2]
        kept.append((axis, stride, n))
    return tuple(kept)


def reshape(axes: Sequence[Axis], shape: Sequence[int]) -> tuple[Axis, ...] | None:
    """The same elements under another shape of equal size, or None where a new axis would cut a piece unevenly."""
    left = [atom for axis in axes for atom in axis]
    result: list[Axis] = []
    for n in shape:
        taken: list[Atom] = []
        got = 1
        if n == 1 and left and left[0][2] == 1:
            taken.append(left.pop(0))
        while got < n:
            while left and left[0][2] == 1:
                left.pop(0)
            if not left or n % got:
                return None
            axis, stride, length = left.pop(0)
            need = n // got
            if length > need:
                if length % need:
                    return None
                left.insert(0, (axis, stride, length // need))  # the outer piece is taken, the inner one remains
                stride, length = stride * (length // need), need
            elif need % length:
                return None
            taken.append((axis, stride, length))
            got *= length
        result.append(merge(taken))
    return tuple(result) if all(n == 1 for _, _, n in left) else None


def by_operator(atoms: Sequence[Atom]) -> list[int]:
    """Positions of the atoms in the row-major order of the operator's own axes."""
    return sorted(range(len(atoms)), key=lambda k: (atoms[k][0], -atoms[k][1]))


def covers(atoms: Sequence[Atom], axis: int, length: int) -> bool:
    """Whether these atoms together are the whole of operator axis `axis`."""
    return all(a[0] == axis for a in atoms) and math.prod(a[2] for a in atoms) == length
