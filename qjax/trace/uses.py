"""What a function does with each leaf of its parameters: `uses(fn, params, batch)` traces once and computes nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from qjax.trace import labels
from qjax.trace.arguments import Input, Traced, traced
from qjax.trace.interpreter import evaluate
from qjax.trace.leaf import SCANNED, TRACED, plain
from qjax.trace.meeting import Meeting
from qjax.trace.use import Use, Uses
from qjax.trace.walk import Lookup, Shape, Walk

__all__ = ["SCANNED", "TRACED", "Use", "Uses", "uses"]


def uses(fn: Any, params: Any, batch: Any) -> Uses:
    """Every use fn(params, batch) makes of each floating leaf of params (arrays, shapes, operators); it only traces.

    Default targets (`Uses.targets`) are leaves with products against activations and no other use; `Uses.excluded`
    names the rest with reasons: lookups and tied heads, an untied head (as many outputs as a looked-up table has rows),
    leaves whose product feeds top_k (routers), those of one output beside others that read the same input (gates),
    depthwise convolutions, norms, biases.

    >>> import jax.numpy as jnp
    >>> params = {"w": jnp.ones((4, 3)), "b": jnp.ones(4)}
    >>> found = uses(lambda p, x: x @ p["w"].T + p["b"][None], params, jnp.ones((2, 3)))
    >>> found.targets(), found.matrix("w").contract_axes, found.excluded
    (('w',), (-1,), {'b': 'no product with an activation: used by add'})
    """
    program = traced(fn, (params, batch), {})
    return summary(follow(program), program.inputs)


def follow(program: Traced, weights: Sequence[int] | None = None) -> Walk:
    """The walk of fn(params, batch); `weights`, the shape of per-token weights, says which axes are tokens.

    ValueError when no array of the batch has them in front.
    """
    tape = Walk()
    inputs: list[Any] = []
    marked = weights is None
    for i in program.inputs:
        shape, dtype = i.leaf.shape, i.leaf.dtype
        if i.parameter:
            inputs.append(plain(i.path, Shape(shape, dtype)))
            continue
        tokens = None if weights is None or i.first else labels.of_batch(shape, weights)
        marked = marked or tokens is not None
        inputs.append(Shape(shape, dtype, tokens))
    if not marked:
        raise ValueError(f"weights of shape {tuple(weights or ())} match the leading axes of no array of the batch")
    evaluate(program.jaxpr, inputs, tape)
    return tape


def summary(tape: Walk, inputs: Sequence[Input]) -> Uses:
    """The uses a walk wrote down, per parameter."""
    found: dict[str, list[Use]] = {path: [] for path in tape.order}
    numbers: dict[Any, int] = {}
    for m in tape.meetings:
        number = numbers.setdefault((id(m.x), m.key), len(numbers))
        found[m.leaf.source.path].append(_use(m, number))
    for lookup in tape.lookups:
        found[lookup.leaf.source.path].append(_lookup(lookup))
    for leaf, primitive in tape.others:
        s = leaf.source
        found[s.path].append(Use(s.path, primitive, s.shape, s.dtype, index=s.dropped))
    tables = {u.matrix_shape[-1]: p for p, us in found.items() for u in us if u.kind == "lookup"}
    readers = Counter(u.input_id for us in found.values() for u in us if u.kind == "product")
    shared = {number for number, count in readers.items() if count > 1}
    impossible, excluded = {}, {}
    for path in [i.path for i in inputs if i.parameter]:
        listed = found.get(path, [])
        if reason := _impossible(listed):
            impossible[path] = excluded[path] = reason
        elif reason := _unusual(path, listed, tables, tape.routers, shared):
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


def _unusual(
    path: str, listed: Sequence[Use], tables: Mapping[int, str], routers: set[str], shared: set[int | None]
) -> str:
    """Why a matrix is no default target."""
    products = [u for u in listed if u.kind == "product"]
    if any(u.kind == "lookup" for u in listed):
        return (
            "an embedding tied to a head: looked up and multiplied" if products else "an embedding: rows are looked up"
        )
    if others := [u for u in listed if u.kind == "other"]:
        return f"also used by {_names(others)}"
    first = products[0]
    if any((u.batch_axes, u.contract_axes) != (first.batch_axes, first.contract_axes) for u in products):
        return "its products contract different axes"
    rows = first.matrix_shape[-1]
    if rows in tables:
        return f"an untied head: as many outputs as {tables[rows]!r} has rows"
    if path in routers:
        return "a router: its product feeds top_k"
    if rows == 1 and first.input_id in shared:
        return "a gate: one output, beside matrices that read the same input"
    return ""


def _names(listed: Sequence[Use]) -> str:
    return ", ".join(dict.fromkeys(u.primitive for u in listed))
