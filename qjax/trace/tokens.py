"""Weights of tokens on their way through loops: which part of them belongs to the rows at hand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import jax
import jax.numpy as jnp

from qjax.nodes import node
from qjax.operators import atoms
from qjax.trace.labels import Axis, Labels


@node
@dataclass(frozen=True)
class Tokens:
    """Weights, one axis per digit of the user's (`qjax.trace.labels`); loops have sliced the others away."""

    array: jax.Array
    digits: tuple[atoms.Atom, ...] = field(metadata={"static": True})

    @classmethod
    def of(cls, weights: jax.Array) -> Tokens:
        return cls(weights, tuple((i, 1, n) for i, n in enumerate(weights.shape)))

    def cut(self, wanted: Sequence[atoms.Atom]) -> Tokens | None:
        """The same weights with axes cut so that every wanted digit is one axis; None where the cuts cross."""
        digits: list[atoms.Atom] = []
        for axis, stride, size in self.digits:
            pieces = sorted((d for d in wanted if _inside(d, (axis, stride, size))), key=lambda d: -d[1])
            top = stride * size
            for piece in pieces:
                if top % (piece[1] * piece[2]):
                    return None
                if (gap := top // (piece[1] * piece[2])) > 1:
                    digits.append((axis, piece[1] * piece[2], gap))
                digits.append(piece)
                top = piece[1]
            if top % stride:
                return None
            if top > stride or (not pieces and size == 1):
                digits.append((axis, stride, max(top // stride, 1)))
        if any(d not in digits for d in wanted) or math.prod(n for *_, n in digits) != self.array.size:
            return None
        return Tokens(self.array.reshape([n for *_, n in digits]), tuple(digits))

    def over(self, axis: Axis) -> Tokens | None:
        """The weights a scan over these tokens slices: its length first, the digits of one iteration behind."""
        cut = self.cut(axis)
        if cut is None:
            return None
        front = [cut.digits.index(d) for d in axis]
        rest = [i for i in range(len(cut.digits)) if i not in front]
        array = jnp.transpose(cut.array, (*front, *rest))
        array = array.reshape(math.prod(n for *_, n in axis), *array.shape[len(front) :])
        return Tokens(array, tuple(cut.digits[i] for i in rest))

    def rows(self, labels: Labels, shape: Sequence[int]) -> jax.Array | None:
        """One weight for each row of axes `shape`, flattened; None where tokens and rows have parted.

        Rows that do not depend on the batch (labels None) all count.
        """
        if labels is None:
            return jnp.ones(math.prod(shape), self.array.dtype)
        flat = [d for axis in labels for d in axis]
        cut = self.cut(flat)
        if cut is None or len(set(flat)) != len(flat) or set(cut.digits) - set(flat) - _ones(cut.digits):
            return None
        order = [cut.digits.index(d) for d in flat]
        order += [i for i in range(len(cut.digits)) if i not in order]
        array = jnp.transpose(cut.array, order).reshape([math.prod(n for *_, n in axis) for axis in labels])
        return jnp.broadcast_to(array, tuple(shape)).reshape(-1)


def _inside(d: atoms.Atom, whole: atoms.Atom) -> bool:
    return d[0] == whole[0] and d[1] >= whole[1] and d[1] * d[2] <= whole[1] * whole[2]


def _ones(digits: Sequence[atoms.Atom]) -> set[atoms.Atom]:
    return {d for d in digits if d[2] == 1}
