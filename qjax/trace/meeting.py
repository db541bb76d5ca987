"""Where a leaf meets an activation in a matrix product: which of its axes are batch, contracted and output."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp

from qjax.operators import atoms
from qjax.trace.leaf import Leaf


@dataclass(frozen=True)
class Meeting:
    """One product. Axes are negative ones of the stored leaf, ascending; `matrix()` is x as [batch..., free..., K]."""

    leaf: Leaf
    eqn: Any
    x: Any
    batch: tuple[int, ...]
    contract: tuple[int, ...]
    outputs: tuple[int, ...]
    free: tuple[int, ...]  # the axes of x that are tokens
    matrix: Callable[[], Any]
    key: tuple[Any, ...]  # two products of one x with equal keys have the same matrix
    tokens: int
    groups: Any = None  # ragged products: how many consecutive tokens meet each entry of the (one) batch axis
    flaw: str = ""  # why the product cannot be written as [..., K] @ [K, N] of the whole leaf


def dot(eqn: Any, leaf: Leaf, x: Any, right: bool) -> Meeting:
    """The meeting of a dot_general; `right` says that the leaf is its right operand."""
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    wc, xc, wb, xb = (rc, lc, rb, lb) if right else (lc, rc, lb, rb)
    free = tuple(i for i in range(len(x.shape)) if i not in (*xc, *xb))
    inner, batch = digits(leaf, wc), digits(leaf, wb)
    outer = digits(leaf, [i for i in range(leaf.ndim) if i not in (*wc, *wb)])
    contract, outputs, batched = axes_of(inner), axes_of(outer), axes_of(batch)
    key = (tuple(xb), tuple(xc), inner, batch)

    def matrix() -> Any:
        return as_rows(x, xb, free, xc, batch, inner)

    flaw = ""
    if set(batched) & {*contract, *outputs} or set(contract) & set(outputs):
        flaw = "one stored axis is contracted in part only"
    elif cut := [i for i in contract if i in leaf.source.part]:
        flaw = f"only a slice of its axis {cut[0]} is contracted"
    tokens = math.prod(x.shape[i] for i in free)
    return Meeting(leaf, eqn, x, batched, contract, outputs, free, matrix, key, tokens, flaw=flaw)


def digits(leaf: Leaf, dims: Sequence[int]) -> tuple[atoms.Atom, ...]:
    """The digits of some axes of a leaf, in order."""
    return tuple(atom for i in dims for atom in leaf.axes[i])


def axes_of(pieces: Sequence[atoms.Atom]) -> tuple[int, ...]:
    """The stored axes of some digits, ascending."""
    return tuple(sorted({axis for axis, _, _ in pieces}))


def as_rows(
    x: Any,
    x_batch: Sequence[int],
    x_free: Sequence[int],
    x_contract: Sequence[int],
    batch: Sequence[atoms.Atom],
    inner: Sequence[atoms.Atom],
) -> Any:
    """X as [batch..., free..., K], batch axes and the elements of K in the order of the stored leaf's own axes."""
    free = [x.shape[i] for i in x_free]
    x = jnp.transpose(x, (*x_batch, *x_free, *x_contract))
    x = x.reshape([*(n for *_, n in batch), *free, *(n for *_, n in inner)])
    nb, nf = len(batch), len(free)
    by_batch, by_inner = atoms.by_operator(list(batch)), atoms.by_operator(list(inner))
    x = jnp.transpose(x, [*by_batch, *range(nb, nb + nf), *(nb + nf + k for k in by_inner)])
    lead: dict[int, int] = {}
    for axis, _, n in batch:
        lead[axis] = lead.get(axis, 1) * n
    return x.reshape(*(lead[axis] for axis in sorted(lead)), *free, math.prod(x.shape[nb + nf :]))
