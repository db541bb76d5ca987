"""Rules of equations that move a leaf's axes about without touching its numbers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from qjax.operators import atoms
from qjax.qarray import QArray
from qjax.trace.interpreter import Rule, Tape
from qjax.trace.leaf import Leaf


def moved(eqn: Any, leaf: Leaf, tape: Tape, **changes: Any) -> list[Any]:
    """The leaf after a layout change; a plain one has its array moved by the equation itself."""
    value = None if leaf.value is None else tape.bind(eqn, [leaf.value])[0]
    return [leaf.to(value=value, **changes)]


def identity(eqn: Any, inputs: Sequence[Any], tape: Tape) -> list[Any]:
    """The same numbers in the same places."""
    return moved(eqn, inputs[0], tape)


def transpose(eqn: Any, inputs: Sequence[Any], tape: Tape) -> list[Any]:
    """Axes in another order."""
    leaf, order = inputs[0], eqn.params["permutation"]
    view = None if leaf.view is None else leaf.view.permute(order)
    return moved(eqn, leaf, tape, view=view, axes=tuple(leaf.axes[i] for i in order))


def reshape(eqn: Any, inputs: Sequence[Any], tape: Tape) -> list[Any] | None:
    """Axes cut or merged where their digits allow it."""
    leaf, shape = inputs[0], eqn.outvars[0].aval.shape
    if len(inputs) > 1 or math.prod(leaf.shape) != math.prod(shape):
        return None  # a broadcast that copies the weight
    if eqn.primitive.name == "reshape" and eqn.params.get("dimensions"):
        return None
    if eqn.primitive.name == "broadcast_in_dim":
        dims = list(eqn.params["broadcast_dimensions"])
        if dims != sorted(dims):
            return None
    axes = atoms.reshape(leaf.axes, shape)
    view = None if leaf.view is None else leaf.view.reshape(shape)
    if axes is None or (leaf.view is not None and view is None):
        return None
    return moved(eqn, leaf, tape, view=view, axes=axes)


def convert(eqn: Any, inputs: Sequence[Any], tape: Tape) -> list[Any] | None:
    """A cast changes what the leaf claims to be, not how it is stored (a bf16 flax Dense casts its kernel first)."""
    leaf, new = inputs[0], eqn.params["new_dtype"]
    if not jnp.issubdtype(new, jnp.floating):
        return None
    view = None if leaf.view is None else leaf.view.astype(new)
    return moved(eqn, leaf, tape, view=view, dtype=str(np.dtype(new)))


def stop_gradient(eqn: Any, inputs: Sequence[Any], tape: Tape) -> list[Any]:
    """No gradient reaches the arrays of the operator."""
    leaf = inputs[0]
    if leaf.view is not None:
        return [leaf.to(view=jax.tree.map(lax.stop_gradient, leaf.view))]
    return moved(eqn, leaf, tape)


def optimization_barrier(eqn: Any, inputs: Sequence[Any], tape: Tape) -> list[Any]:
    """Operators go around the barrier: it orders computation and computes nothing."""
    arrays = [x.value if isinstance(x, Leaf) else x for x in inputs]
    present = [i for i, a in enumerate(arrays) if a is not None]
    through = dict(zip(present, tape.bind(eqn, [arrays[i] for i in present]) if present else [], strict=True))
    return [x.to(value=through.get(i)) if isinstance(x, Leaf) else through[i] for i, x in enumerate(inputs)]


def slice_(eqn: Any, inputs: Sequence[Any], tape: Tape) -> list[Any] | None:
    """Entries of batch axes and outputs; a single row of an embedding."""
    leaf, shape = inputs[0], eqn.outvars[0].aval.shape
    if not isinstance(leaf, Leaf) or any(isinstance(i, Leaf) for i in inputs[1:]):
        return None
    if eqn.primitive.name == "slice":
        starts: list[Any] = [int(i) for i in eqn.params["start_indices"]]
        strides = eqn.params["strides"]
        if strides is not None and set(strides) != {1}:
            return None
    else:
        starts = [tape.start(i, n - m) for i, n, m in zip(inputs[1:], leaf.shape, shape, strict=True)]
    whole: Leaf | None = leaf
    for dim, size in enumerate(shape):
        previous = whole
        if size == 1 and _core(previous, dim):  # one row of a table is an array, not an operator with one output
            taken = _row(previous, dim, starts[dim], size) if previous is leaf else None
            if taken is not None and taken.shape == tuple(shape):
                return [taken]
        whole = previous.slice(dim, starts[dim], size)
        if whole is None:
            return None
    value = None if leaf.value is None else tape.bind(eqn, [leaf.value, *inputs[1:]])[0]
    return [whole.to(value=value)]


def _core(leaf: Leaf, dim: int) -> bool:
    """Whether an axis of an operator leaf is its inputs or outputs, and longer than one."""
    if leaf.view is None or leaf.shape[dim] == 1:
        return False
    op = leaf.view.op
    core = len(op.meta.block) if isinstance(op, QArray) else 2
    return all(axis >= -core for axis, _, _ in leaf.view.live[dim])


def _row(leaf: Leaf, dim: int, start: Any, size: int) -> jax.Array | None:
    """One row of an operator (an embedding looked up by a scalar): only that row is dequantized."""
    if leaf.view is None or size != 1:
        return None
    return leaf.view.take(jnp.asarray(start).reshape(1), axis=dim)


def split(eqn: Any, inputs: Sequence[Any], tape: Tape) -> list[Any] | None:
    """Consecutive slices along one axis."""
    leaf, dim, start = inputs[0], eqn.params["axis"], 0
    parts = []
    for size in eqn.params["sizes"]:
        part = leaf.slice(dim, start, size)
        if part is None:
            return None
        parts.append(part)
        start += size
    values = [None] * len(parts) if leaf.value is None else tape.bind(eqn, [leaf.value])
    return [part.to(value=value) for part, value in zip(parts, values, strict=True)]


RULES: dict[str, Rule] = {
    "transpose": transpose,
    "reshape": reshape,
    "squeeze": reshape,
    "expand_dims": reshape,
    "broadcast_in_dim": reshape,
    "convert_element_type": convert,
    "copy": identity,
    "copy_p": identity,
    "name": identity,
    "sharding_constraint": identity,
    "stop_gradient": stop_gradient,
    "optimization_barrier": optimization_barrier,
    "slice": slice_,
    "dynamic_slice": slice_,
    "split": split,
}
