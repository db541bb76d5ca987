"""What a function does with each leaf of its parameters: `uses(fn, params, batch)` traces once and computes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from qjax.trace import labels, versions
from qjax.trace.interpreter import evaluate
from qjax.trace.leaf import SCANNED, TRACED, plain
from qjax.trace.meeting import Meeting
from qjax.trace.paths import is_leaf, leaves_with_paths, path_str
from qjax.trace.use import Use, Uses
from qjax.trace.walk import Lookup, Shape, Walk

__all__ = ["SCANNED", "TRACED", "Use", "Uses", "uses"]


def uses(fn: Any, params: Any, batch: Any) -> Uses:
    """Every use fn(params, batch) makes of each floating leaf of params (arrays, shapes or operators); nothing is computed.

    Default targets (`Uses.targets`) are leaves with products against activations and no other use; `Uses.excluded` names
    the rest with reasons: lookups and tied heads, an untied head (as many outputs as a looked-up table has rows), leaves
    whose product feeds top_k (routers), depthwise convolutions, norms, biases.

    >>> import jax.numpy as jnp
    >>> found = uses(lambda p, x: x @ p["w"].T + p["b"], {"w": jnp.ones((4, 3)), "b": jnp.ones(4)}, jnp.ones((2, 3)))
    >>> found.targets(), found.matrix("w").contract_axes, found.excluded
    (('w',), (-1,), {'b': 'no product with an activation: used by broadcast_in_dim, add'})
    """
    return summary(followed(fn, params, batch), params)


def followed(fn: Any, params: Any, batch: Any, weights: Any = None) -> Walk:
    """The walk of fn(params, batch); `weights` (its shape) says which axes of the batch are tokens."""
    closed, leaves = traced(fn, params, batch)
    tape = Walk()
    inputs: list[Any] = []
    marked = weights is None
    for path, spec in leaves:
        if path is not None:
            inputs.append(plain(path, Shape(spec.shape, spec.dtype)))
            continue
        tokens = None if weights is None else labels.of_batch(spec.shape, weights.shape)
        marked = marked or tokens is not None
        inputs.append(Shape(spec.shape, spec.dtype, tokens))
    if not marked:
        raise ValueError(f"weights of shape {tuple(weights.shape)} match the leading axes of no array of the batch")
    for out in evaluate(closed, inputs, tape):
        del out
    return tape


def traced(fn: Any, params: Any, batch: Any) -> tuple[Any, list[tuple[str | None, Any]]]:
    """(jaxpr of fn on the arrays of params and batch, [(path or None, shape)] of its inputs); operators count as arrays."""
    leaves, tree = jax.tree_util.tree_flatten_with_path((params, batch), is_leaf=is_leaf)
    moving = [i for i, (_, leaf) in enumerate(leaves) if hasattr(leaf, "shape") and hasattr(leaf, "dtype")]

    def flat(*values: Any) -> list[Any]:
        full = [leaf for _, leaf in leaves]
        for i, value in zip(moving, values, strict=True):
            full[i] = value
        return [o for o in jax.tree.leaves(fn(*jax.tree.unflatten(tree, full))) if isinstance(o, jax.Array)]

    specs = [jax.ShapeDtypeStruct(leaves[i][1].shape, leaves[i][1].dtype) for i in moving]
    names = []
    for i, spec in zip(moving, specs, strict=True):
        keypath = leaves[i][0]
        tracked = keypath[0].idx == 0 and jnp.issubdtype(spec.dtype, jnp.floating)
        names.append((path_str(keypath[1:]) if tracked else None, spec))
    return versions.trace(flat, *specs), names


def summary(tape: Walk, params: Any) -> Uses:
    """The uses a walk wrote down, per leaf of params."""
    found: dict[str, list[Use]] = {path: [] for path in tape.order}
    inputs: dict[Any, int] = {}
    for m in tape.meetings:
        number = inputs.setdefault((id(m.x), m.key), len(inputs))
        found[m.leaf.source.path].append(_use(m, number))
    for lookup in tape.lookups:
        found[lookup.leaf.source.path].append(_lookup(lookup))
    for leaf, primitive in tape.others:
        s = leaf.source
        found[s.path].append(Use(s.path, primitive, s.shape, s.dtype, index=s.dropped))
    tables = {u.matrix_shape[-1]: p for p, us in found.items() for u in us if u.kind == "lookup"}
    impossible, excluded = {}, {}
    for path, spec in leaves_with_paths(params).items():
        if not hasattr(spec, "dtype") or not jnp.issubdtype(spec.dtype, jnp.floating):
            continue
        listed = found.get(path, [])
        if reason := _impossible(listed):
            impossible[path] = excluded[path] = reason
        elif reason := _unusual(path, listed, tables, tape.routers):
            excluded[path] = reason
    return Uses({p: tuple(u) for p, u in found.items()}, excluded, impossible)


def _use(m: Meeting, number: int) -> Use:
    s = m.leaf.source
    rank, gone = len(s.shape), dict(s.dropped)
    batch = tuple(sorted({*m.batch, *gone}))
    # Axes of length 1 that no digit of the value names lie with their neighbours.
    rest = [a for a in range(-rank, 0) if a not in (*batch, *m.contract, *m.outputs)]
    outputs = tuple(sorted({*m.outputs, *rest}))
    name, flaw = m.eqn.primitive.name, m.flaw
    return Use(s.path, name, s.shape, s.dtype, batch, m.contract, outputs, number, m.tokens, s.dropped, "product", flaw)


def _lookup(lookup: Lookup) -> Use:
    s = lookup.leaf.source
    contract = tuple(a for a in range(-len(s.shape), 0) if a != lookup.axis)
    axes = {"contract_axes": contract, "output_axes": (lookup.axis,)}
    return Use(s.path, lookup.primitive, s.shape, s.dtype, index=s.dropped, kind="lookup", **axes)


def _impossible(listed: Sequence[Use]) -> str:
    """Why a leaf is no matrix."""
    if not listed:
        return "never used"
    matrices = [u for u in listed if u.kind != "other"]
    if not matrices:
        return f"no product with an activation: used by {_names(listed)}"
    return matrices[0].flaw


def _unusual(path: str, listed: Sequence[Use], tables: Mapping[int, str], routers: set[str]) -> str:
    """Why a matrix is no default target."""
    products = [u for u in listed if u.kind == "product"]
    if any(u.kind == "lookup" for u in listed):
        return (
            "an embedding tied to a head: looked up and multiplied" if products else "an embedding: rows are looked up"
        )
    if others := [u for u in listed if u.kind == "other"]:
        return f"also used by {_names(others)}"
    if path in routers:
        return "a router: its product feeds top_k"
    first = products[0]
    if any((u.batch_axes, u.contract_axes) != (first.batch_axes, first.contract_axes) for u in products):
        return "its products contract different axes"
    rows = first.matrix_shape[-1]
    if rows in tables:
        return f"an untied head: as many outputs as {tables[rows]!r} has rows"
    return ""


def _names(listed: Sequence[Use]) -> str:
    return ", ".join(dict.fromkeys(u.primitive for u in listed))
