"""Rules of products with activations: the meeting is written down, and an operator leaf does the product itself."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp

from qjax.operators import atoms
from qjax.operators.rows import Rows
from qjax.qarray import QArray
from qjax.trace import meeting
from qjax.trace.interpreter import Rule, Tape
from qjax.trace.leaf import Leaf, Source


def dot_general(eqn: Any, inputs: Sequence[Any], tape: Tape) -> list[Any] | None:
    """A product with the leaf on either side, its axes batched, contracted or left in any order."""
    left, right = inputs
    if isinstance(left, Leaf) and isinstance(right, Leaf):
        if right.view is not None:
            left = tape.dense(left, eqn)
        elif left.view is not None:
            right = tape.dense(right, eqn)
        else:
            return None  # two leaves: there is no activation to observe
    on_right = isinstance(right, Leaf)
    leaf: Leaf = right if on_right else left
    x: Any = left if on_right else right
    if leaf.view is None:
        tape.use(meeting.dot(eqn, leaf, x, on_right))
        return tape.bind(eqn, [leaf.value if v is leaf else v for v in (left, right)])
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return None
    (lc, rc), (lb, rb) = eqn.params["dimension_numbers"]
    contract, batch = ((rc, lc), (rb, lb)) if on_right else ((lc, rc), (lb, rb))
    out = eqn.outvars[0].aval
    y = leaf.view.dot(x, contract, batch, view_first=not on_right, dtype=eqn.params["preferred_element_type"])
    if y is None:
        return None
    tape.use(meeting.dot(eqn, leaf, x, on_right))
    return [y.astype(out.dtype)]


def gather(eqn: Any, inputs: Sequence[Any], tape: Tape) -> list[Any] | None:
    """Rows of an embedding: an operator dequantizes only the rows that are taken."""
    leaf, ids = inputs
    if not isinstance(leaf, Leaf) or isinstance(ids, Leaf):
        return None
    p, d = eqn.params, eqn.params["dimension_numbers"]
    if len(d.start_index_map) != 1 or d.collapsed_slice_dims != d.start_index_map or d.operand_batching_dims:
        return None
    (dim,) = d.start_index_map
    if tuple(p["slice_sizes"]) != tuple(1 if i == dim else n for i, n in enumerate(leaf.shape)):
        return None
    if leaf.view is None:
        tape.looked_up(leaf, eqn, dim)
        return tape.bind(eqn, [leaf.value, ids])
    n, ids = leaf.shape[dim], ids[..., 0]
    taken = leaf.view.take(jnp.clip(ids, 0, n - 1), axis=dim)  # [..., *ids.shape, ...]
    if taken is None:
        return None
    places = tuple(range(dim, dim + ids.ndim))
    if "FILL" in str(p["mode"]):
        fill = jnp.nan if p["fill_value"] is None else p["fill_value"]
        inside = jnp.expand_dims((ids >= 0) & (ids < n), [i for i in range(taken.ndim) if i not in places])
        taken = jnp.where(inside, taken, jnp.full((), fill, taken.dtype))
    rest = iter([i for i in range(taken.ndim) if i not in places])
    from_ids = iter(places)
    order = [next(rest) if i in d.offset_dims else next(from_ids) for i in range(taken.ndim)]
    return [jnp.transpose(taken, order).astype(eqn.outvars[0].aval.dtype)]


def concatenate(eqn: Any, inputs: Sequence[Any], tape: Tape) -> list[Any] | None:
    """Operators side by side along their outputs (fused projections) are one operator; observed arrays stay arrays."""
    views = [x.view for x in inputs if isinstance(x, Leaf) and x.view is not None]
    if len(views) != len(inputs):
        return None
    first = views[0]
    rank, dim = len(first.op.shape), eqn.params["dimension"]
    if first.live[dim] != ((-1, 1, first.op.shape[-1]),):
        return None
    for view in views:
        same = [a for i, a in enumerate(view.live) if i != dim] == [a for i, a in enumerate(first.live) if i != dim]
        core = len(view.op.meta.block) if isinstance(view.op, QArray) else 2
        if not same or len(view.op.shape) != rank or core != 2 or view.live[dim] != ((-1, 1, view.op.shape[-1]),):
            return None
    op = Rows(tuple(view.op for view in views))
    axes = (*first.live[:dim], ((-1, 1, op.shape[-1]),), *first.live[dim + 1 :])
    view = dataclasses.replace(first, op=op, axes=axes)
    source = Source(" | ".join(x.source.path for x in inputs), tuple(view.shape), inputs[0].dtype)
    return [Leaf(None, view, atoms.whole(view.shape), inputs[0].dtype, source)]


RULES: dict[str, Rule] = {"dot_general": dot_general, "gather": gather, "concatenate": concatenate}
