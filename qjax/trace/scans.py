"""The rule of scan: stacked operators are sliced with the loop, layers that differ are run one by one."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from qjax.dispatch import index, scannable
from qjax.operators.view import View
from qjax.trace import record, versions
from qjax.trace.interpreter import array, evaluate
from qjax.trace.leaf import Leaf, leads
from qjax.trace.walk import fixed, layer_of

__all__ = ["fixed", "restored", "scan"]


def restored(values: Sequence[Any], kept: dict[int, Any], n: int) -> list[Any]:
    """N values: the kept ones in their places, the others in order."""
    rest = iter(values)
    return [kept[i] if i in kept else next(rest) for i in range(n)]


def scan(eqn: Any, inputs: Sequence[Any], tape: Any) -> list[Any]:
    """One loop, or one for each run of layers of equal structure."""
    p = versions.scan_parts(eqn)
    consts, carry = inputs[: p.consts], inputs[p.consts : p.consts + p.carry]
    xs = [_scannable(x, tape, eqn) for x in inputs[p.consts + p.carry :]]
    kept = fixed(p.jaxpr, p.consts, carry)
    state = []
    for v, out in zip(carry, eqn.outvars, strict=False):
        v = v if len(state) in kept else array(v, tape, eqn)
        state.append(v if isinstance(v, (jax.Array, Leaf)) else jnp.asarray(v, out.aval.dtype))
    runs = _runs(xs, p.length)
    done: list[_Loop] = []
    for start, stop in reversed(runs) if p.reverse else runs:
        part = xs if len(runs) == 1 else [_part(x, start, stop) for x in xs]
        body = _Body(eqn, p, consts, kept, part, tape)
        result = body.loop(state, stop - start)
        state = result.state
        done.append(result)
        tape.add(result.shared)
    if p.reverse:
        done.reverse()
    tape.add(record.stacked(_joined([r.single for r in done])))
    ys = _joined([r.ys for r in done])
    for j, leaf in done[0].lifted.items():
        ys[j] = _whole(leaf, xs, ys[j])
    return [*state, *ys]


def _joined(parts: list[Any]) -> Any:
    """What the loops over parts of the layers stacked, as one loop stacks it."""
    return parts[0] if len(parts) == 1 else jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *parts)


def _whole(leaf: Leaf, xs: Sequence[Any], value: Any) -> Leaf:
    """A leaf stacked by the loops over parts as one of the whole stack; a plain one carries what was stacked."""
    stack = next(x for x in xs if isinstance(x, Leaf) and x.source == leaf.source)
    if leaf.view is None:
        return leaf.to(value=value, axes=(stack.axes[0], *leaf.axes[1:]))
    assert stack.view is not None
    view = dataclasses.replace(leaf.view, op=stack.view.op, axes=(stack.view.live[0], *leaf.view.axes[1:]))
    return leaf.to(view=view, axes=(stack.axes[0], *leaf.axes[1:]))


def _scannable(x: Any, tape: Any, eqn: Any) -> Any:
    """A leaf whose layers the loop can slice, or its array."""
    if not isinstance(x, Leaf):
        return x
    layer = layer_of(x)
    if layer is None or (x.view is not None and not leads(x.view)):
        return array(x, tape, eqn)
    if x.view is not None and (even := scannable(x.view)) is not None:
        return x.to(view=even)
    return x


def _uneven(x: Any) -> bool:
    return isinstance(x, Leaf) and x.view is not None and scannable(x.view) is None


def _runs(xs: Sequence[Any], length: int) -> list[tuple[int, int]]:
    """(start, stop) of consecutive layers that share one structure: one run unless a leaf's layers differ."""
    if not any(map(_uneven, xs)):
        return [(0, length)]
    uneven = [x.view.op for x in xs if isinstance(x, Leaf) and x.view is not None and _uneven(x)]
    keys = [tuple(_structure(index(op, i)) for op in uneven) for i in range(length)]
    edges = [0, *(i for i in range(1, length) if keys[i] != keys[i - 1]), length]
    return list(itertools.pairwise(edges))


def _structure(op: Any) -> Any:
    leaves, tree = jax.tree.flatten(op)
    return tree, tuple((leaf.shape, str(leaf.dtype)) for leaf in leaves)


def _part(x: Any, start: int, stop: int) -> Any:
    """Layers start..stop of a scanned input; layers that differ are stacked where they agree."""
    if not isinstance(x, Leaf):
        return x[start:stop]
    axes = (((x.axes[0][0][0], 1, stop - start),), *x.axes[1:])
    if x.view is None:
        return x.to(value=x.value[start:stop], axes=axes)
    if _uneven(x):
        layers = [index(x.view.op, i) for i in range(start, stop)]
        op = jax.tree.map(lambda *leaves: jnp.stack(leaves), *layers)
    else:
        op = jax.tree.map(lambda leaf: leaf[start:stop], x.view.op)
    rank = len(x.view.op.shape)
    view = dataclasses.replace(x.view, op=op, axes=(((-rank, 1, stop - start),), *x.view.live[1:]))
    return x.to(view=view, axes=axes)


class _Loop(NamedTuple):
    """What one loop leaves: state, stacked outputs, statistics of single layers and of all together, lifted outputs."""

    state: list[Any]
    ys: list[Any]
    single: record.Stats
    shared: record.Stats
    lifted: dict[int, Leaf]


class _Body:
    """The body of one scan equation on given leaves, and what its traces find out."""

    def __init__(self, eqn: Any, p: versions.Scan, consts: Any, kept: dict[int, Leaf], xs: Any, tape: Any) -> None:
        self.eqn, self.p, self.consts, self.kept, self.tape = eqn, p, consts, kept, tape
        self.stacks = xs
        self.layers = [layer_of(x) if isinstance(x, Leaf) else None for x in xs]
        self.sliced = frozenset(
            (x.source.path, layer.source.dropped[-1][0])
            for x, layer in zip(xs, self.layers, strict=True)
            if isinstance(x, Leaf) and layer is not None
        ) | tape.sites_of_layers(any(layer is not None for layer in self.layers))
        self.lifted: dict[int, Any] = {}  # outputs that are a layer of a leaf: the stacked leaf stands for them

    def step(self, state: Sequence[Any], x: Sequence[Any], weights: Any) -> Any:
        """One iteration: (new state, outputs, statistics of this layer alone, statistics shared by the layers)."""
        frame = self.tape.child(weights=weights, layered=any(layer is not None for layer in self.layers))
        entries = [
            v
            if layer is None
            else layer.to(value=None if isinstance(v, View) else v, view=v if isinstance(v, View) else None)
            for v, layer in zip(x, self.layers, strict=True)
        ]
        carry = restored(state, self.kept, self.p.carry)
        outs = evaluate(self.p.jaxpr, [*self.consts, *carry, *entries], frame)
        new = [array(o, frame, self.eqn) for i, o in enumerate(outs[: self.p.carry]) if i not in self.kept]
        ys = []
        for j, o in enumerate(outs[self.p.carry :]):
            if isinstance(o, Leaf) and self._lift(j, o, entries):
                ys.append(o.value)
            else:
                ys.append(array(o, frame, self.eqn))
        return new, ys, *record.split(frame.take(), self.sliced)

    def _lift(self, j: int, out: Leaf, entries: Sequence[Any]) -> bool:
        """Note that output j is one layer of a stacked leaf, moved about (a residual of a gradient)."""
        for stack, entry in zip(self.stacks, entries, strict=True):
            if not isinstance(entry, Leaf) or entry.source != out.source:
                continue
            view = None
            if out.view is not None:
                assert stack.view is not None and entry.view is not None
                if out.view.op is not entry.view.op:
                    continue
                rank = len(stack.view.op.shape)
                lead = ((-rank, 1, stack.view.op.shape[0]),)
                view = dataclasses.replace(out.view, op=stack.view.op, axes=(lead, *out.view.axes))
            self.lifted[j] = stack.to(value=None, view=view, axes=(stack.axes[0], *out.axes), dtype=out.dtype)
            return True
        return False

    def loop(self, state: Sequence[Any], length: int) -> _Loop:
        """lax.scan over the layers."""
        tape, p = self.tape, self.p
        moving = [v for i, v in enumerate(state) if i not in self.kept]
        arrays = [(x.value if x.view is None else x.view) if isinstance(x, Leaf) else x for x in self.stacks]
        weights = tape.scanned_weights(self.eqn)  # None unless the loop goes over tokens
        zero: Any = {}
        if tape.observes:
            first = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), (arrays, weights))
            zero = tape.zero(jax.eval_shape(lambda s, x: self.step(s, *x)[3], moving, first))

        def body(state: Any, x: Any) -> Any:
            new, ys, single, shared = self.step(state[0], *x)
            return (new, tape.combine(state[1], shared)), (ys, single)

        (final, shared), (ys, single) = lax.scan(
            body, (moving, zero), (arrays, weights), length=length, reverse=p.reverse, unroll=p.unroll
        )
        return _Loop(restored(final, self.kept, p.carry), ys, single, shared, dict(self.lifted))
