"""A traced function as one flat list of equations: calls around several parameter groups entered, layer scans unrolled.

Cutting needs the layers side by side. So calls (jit, remat) that read more than one group are inlined, and a scan whose
inputs are stacked parameters becomes one copy of its body per iteration, each reading its own slices of the leaves.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from qjax.trace import versions

LeafKey = tuple[str, int | None]  # (path, index into the leading axis or None for the whole leaf)

_TRANSPARENT = {"jit", "pjit", "closed_call", "core_call"}  # calls that mean nothing but their body
_REMAT = {"remat2", "checkpoint"}


class CannotCut(ValueError):
    """A function that has no cut between two parameter groups; the message says which equation is in the way."""


@dataclass(eq=False)
class Node:
    """One equation. `key` identifies what `run` computes, for comparing segments."""

    run: Callable[[Sequence[Any]], Sequence[Any]]
    key: Hashable
    inputs: list[int]
    outputs: list[int]
    eqn: Any = None
    kept: bool = False  # has effects: never dropped or repeated
    state: bool = False  # hands on a loop's carry: never recomputed, stays where it is
    home: str | None = None  # the group whose iteration of a scan it stands in


@dataclass
class Value:
    """What an equation reads: shape and dtype, and on what it depends."""

    shape: tuple[int, ...]
    dtype: Any
    const: Any = None
    leaf: LeafKey | None = None
    node: Node | None = None
    batch: bool = False  # depends on the batch
    leaves: frozenset[LeafKey] = frozenset()

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape, dtype=np.int64)) * getattr(self.dtype, "itemsize", 4)

    @property
    def parametric(self) -> bool:
        """Computed from parameters alone."""
        return not self.batch and bool(self.leaves)


@dataclass
class Flat:
    """The flattened function. `groups`: the group of every leaf (or slice) that `by` selects."""

    values: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    inputs: list[int] = field(default_factory=list)
    outputs: list[int] = field(default_factory=list)
    groups: dict[LeafKey, str] = field(default_factory=dict)
    keep: set[int] = field(
        default_factory=set
    )  # loop state whose last value nobody reads: every iteration still writes it


class Flattener:
    """Builds a Flat. `group`: path -> (group, prefix of a stack) or None."""

    def __init__(self, key: Callable[[Any], Hashable], group: Callable[[str], tuple[str, str] | None]) -> None:
        self.flat = Flat()
        self._key, self._group = key, group
        self._slices: dict[tuple[int, int], int] = {}

    # ---- values
    def value(self, aval: Any, **kw: Any) -> int:
        self.flat.values.append(Value(tuple(aval.shape), aval.dtype, **kw))
        return len(self.flat.values) - 1

    def leaf(self, aval: Any, key: LeafKey, group: str | None) -> int:
        if group is not None:
            self.flat.groups[key] = group
        return self.value(aval, leaf=key, leaves=frozenset([key]))

    def constant(self, value: Any, aval: Any) -> int:
        return self.value(aval, const=value)

    def add(self, run: Any, key: Hashable, inputs: Sequence[int], avals: Sequence[Any], **kw: Any) -> list[int]:
        node = Node(run, key, list(inputs), [], **kw)
        read = [self.flat.values[i] for i in inputs]
        batch = node.kept or node.state or any(v.batch for v in read)
        leaves = frozenset().union(*(v.leaves for v in read))
        node.outputs = [self.value(a, node=node, batch=batch, leaves=leaves) for a in avals]
        self.flat.nodes.append(node)
        return node.outputs

    def grouped(self, ids: Sequence[int]) -> list[str]:
        """The groups whose parameters these values hold (activations that depend on them do not count)."""
        found = dict.fromkeys(
            self.flat.groups[k]
            for i in ids
            if self.flat.values[i].parametric
            for k in sorted(self.flat.values[i].leaves, key=str)
            if k in self.flat.groups
        )
        return list(found)

    # ---- equations
    def run(self, jaxpr: Any, args: Sequence[int]) -> list[int]:
        inner, consts = versions.open_jaxpr(jaxpr)
        bound = [self.constant(c, v.aval) for c, v in zip(consts, inner.constvars, strict=True)]
        env: dict[Any, int] = dict(zip([*inner.constvars, *inner.invars], [*bound, *args], strict=True))

        def read(v: Any) -> int:
            return self.constant(v.val, v.aval) if versions.is_literal(v) else env[v]

        for eqn in inner.eqns:
            env.update(zip(eqn.outvars, self.equation(eqn, [read(v) for v in eqn.invars]), strict=True))
        return [read(v) for v in inner.outvars]

    def equation(self, eqn: Any, ids: list[int]) -> list[int]:
        name, groups = eqn.primitive.name, self.grouped(ids)
        if groups and name in _TRANSPARENT | _REMAT:
            others = any(self.flat.values[i].parametric and not self.grouped([i]) for i in ids)
            body = versions.called(eqn)
            if len(groups) > 1 or (others and name in _TRANSPARENT) or self._holds_stack(body, ids):
                return self.run(body, ids)
        elif groups and name == "scan":
            parts = versions.scan_parts(eqn)
            if self.grouped(ids[parts.consts + parts.carry :]):
                return self._unroll(eqn, parts, ids)
        if len(groups) > 1 and versions.inner_jaxprs(eqn):
            raise CannotCut(
                f"{name} at {where(eqn)} encloses the parameter groups {_some(groups)}, so there is no place to cut "
                f"between them. {_remedy(name)}"
            )
        if (
            groups
            and name in ("scan", "while", "cond")
            and any(self._holds_stack(j, ids, loop=True) for j in versions.inner_jaxprs(eqn))
        ):
            raise CannotCut(
                f"{name} at {where(eqn)} encloses a scan over the stacked layers {_some(groups)}: its iterations run "
                f"once per turn of the outer loop. {_remedy(name)}"
            )
        return self.add(
            lambda inputs: versions.bind(eqn, inputs),
            self._key(eqn),
            ids,
            [v.aval for v in eqn.outvars],
            eqn=eqn,
            kept=bool(eqn.effects),
        )

    def _holds_stack(self, jaxpr: Any, ids: Sequence[int], loop: bool = False) -> bool:
        """Whether somewhere inside a scan takes one of our grouped leaves layer by layer."""
        inner, _ = versions.open_jaxpr(jaxpr)
        flags = [bool(self.grouped([i])) for i in ids]
        if loop and len(flags) != len(
            inner.invars
        ):  # inputs are split over several bodies: the last ones are this body's
            flags = ([True] * len(inner.invars)) if any(flags) else []
        return _scans(inner, flags)

    # ---- stacked layers
    def _unroll(self, eqn: Any, parts: versions.Scan, ids: list[int]) -> list[int]:
        consts, carry = ids[: parts.consts], list(ids[parts.consts : parts.consts + parts.carry])
        xs = ids[parts.consts + parts.carry :]
        inner, _ = versions.open_jaxpr(parts.jaxpr)
        paths = [k[0] for x in xs if self.grouped([x]) for k in self.flat.values[x].leaves]
        common = os.path.commonpath(paths) if paths else ""
        out_avals = [v.aval for v in inner.outvars[parts.carry :]]
        sliced = [self.flat.values[x].parametric for x in xs]
        # What the body changes is handed on in one order at every turn, so that all turns see the same carry.
        pairs = zip(inner.outvars[: parts.carry], inner.invars[parts.consts : parts.consts + parts.carry], strict=True)
        changing = [out is not into for out, into in pairs]
        carry = [self._hand_on(c) if moves else c for c, moves in zip(carry, changing, strict=True)]
        buffers = [self._buffer((parts.length, *a.shape), a.dtype) for a in out_avals]
        counted = not all(sliced) or bool(out_avals)
        step, count = (-1 if parts.reverse else 1), 0
        if counted:
            count = self._counter(parts.length - 1 if parts.reverse else 0)
        for turn in range(parts.length):
            i = parts.length - 1 - turn if parts.reverse else turn
            start = len(self.flat.nodes)
            here = [
                self._slice(x, i, common, eqn) if flag else self._dynamic(x, count)
                for x, flag in zip(xs, sliced, strict=True)
            ]
            outs = self.run(parts.jaxpr, [*consts, *carry, *here])
            carry = [
                self._hand_on(o) if moves else c
                for o, c, moves in zip(outs[: parts.carry], carry, changing, strict=True)
            ]
            buffers = [self._update(b, y, count) for b, y in zip(buffers, outs[parts.carry :], strict=True)]
            if counted:
                count = self._advance(count, step)
            self._settle(self.flat.nodes[start:], self.grouped(here))
        used = {v for e in inner.eqns for v in e.invars if not versions.is_literal(v)}
        entering = inner.invars[parts.consts : parts.consts + parts.carry]
        self.flat.keep |= {c for v, c, moves in zip(entering, carry, changing, strict=True) if moves and v in used}
        if counted:
            self.flat.keep.add(count)
        return [*carry, *buffers]

    def _settle(self, nodes: Sequence[Node], groups: Sequence[str]) -> None:
        """The body of a turn belongs to the group whose layer it reads."""
        for node in nodes:
            if len(groups) == 1 and node.home is None:
                node.home = groups[0]

    def _hand_on(self, v: int) -> int:
        return self.add(lambda x: [x[0]], ("carry",), [v], [self.flat.values[v]], state=True)[0]

    def _buffer(self, shape: tuple[int, ...], dtype: Any) -> int:
        aval = jax.ShapeDtypeStruct(shape, dtype)
        return self.add(lambda _: [jnp.zeros(shape, dtype)], ("buffer", shape, str(dtype)), [], [aval], state=True)[0]

    def _counter(self, first: int) -> int:
        aval = jax.ShapeDtypeStruct((), np.dtype("int32"))
        return self.add(lambda _: [jnp.asarray(first, jnp.int32)], ("counter", first), [], [aval], state=True)[0]

    def _advance(self, count: int, step: int) -> int:
        run = lambda c: [c[0] + np.int32(step)]  # noqa: E731
        return self.add(run, ("advance", step), [count], [self.flat.values[count]], state=True)[0]

    def _dynamic(self, x: int, count: int) -> int:
        value = self.flat.values[x]
        aval = jax.ShapeDtypeStruct(value.shape[1:], value.dtype)
        run = lambda v: [lax.dynamic_index_in_dim(v[0], v[1], 0, keepdims=False)]  # noqa: E731
        return self.add(run, ("index",), [x, count], [aval])[0]

    def _update(self, buffer: int, y: int, count: int) -> int:
        run = lambda v: [lax.dynamic_update_index_in_dim(v[0], v[1], v[2], 0)]  # noqa: E731
        return self.add(run, ("update",), [buffer, y, count], [self.flat.values[buffer]])[0]

    def _slice(self, x: int, i: int, common: str, eqn: Any) -> int:
        """Layer i of a stacked parameter, following casts and stacking back to the leaves."""
        if (x, i) in self._slices:
            return self._slices[x, i]
        value = self.flat.values[x]
        aval = jax.ShapeDtypeStruct(value.shape[1:], value.dtype)
        source_eqn = value.node.eqn if value.node else None
        name = source_eqn.primitive.name if source_eqn is not None else None
        if value.leaf is not None and value.leaf[1] is None:
            path = value.leaf[0]
            found = self._group(path)
            group = None if found is None else f"{found[1] or common or path}/{i}"
            out = self.leaf(aval, (path, i), group)
        elif name in ("convert_element_type", "copy") and value.node is not None:
            source = self._slice(value.node.inputs[0], i, common, eqn)
            dtype = value.dtype
            run = lambda v: [lax.convert_element_type(v[0], dtype)]  # noqa: E731
            out = self.add(run, ("convert", str(dtype)), [source], [aval])[0]
        elif name == "stack" and value.node is not None and source_eqn is not None and source_eqn.params["axis"] == 0:
            out = value.node.inputs[i]
        elif name == "concatenate" and value.node is not None and self._one_each(value.node):
            out = self.add(lambda v: [lax.squeeze(v[0], (0,))], ("squeeze",), [value.node.inputs[i]], [aval])[0]
        else:
            paths = _some(sorted({k[0] for k in value.leaves}))
            raise CannotCut(
                f"scan at {where(eqn)} reads {paths} layer by layer, but {name} stands "
                "between the leaf and the scan: pass the stacked leaf itself (casts and jnp.stack are seen through)"
            )
        self._slices[x, i] = out
        return out

    def _one_each(self, node: Node) -> bool:
        shapes = [self.flat.values[i].shape for i in node.inputs]
        return node.eqn.params["dimension"] == 0 and all(s[0] == 1 for s in shapes)

    def split_python_stacks(self) -> None:
        """A stacked leaf of which a Python loop takes w[0], w[1], ... is read as slices, one group a layer."""
        flat = self.flat
        readers: dict[int, list[Node]] = {}
        for node in flat.nodes:
            for i in node.inputs:
                readers.setdefault(i, []).append(node)
        renewed = False
        for v, value in enumerate(list(flat.values)):
            if value.leaf is None or value.leaf not in flat.groups or value.leaf[1] is not None or not readers.get(v):
                continue
            starts = [_single(n.eqn, value.shape) for n in readers[v]]
            if len(value.shape) < 2 or value.shape[0] < 2 or set(starts) != set(range(value.shape[0])):
                continue
            path, found = value.leaf[0], self._group(value.leaf[0])
            for node, i in zip(readers[v], starts, strict=True):
                assert i is not None and found is not None
                aval = jax.ShapeDtypeStruct(value.shape[1:], value.dtype)
                part = self._slices.get((v, i))
                part = self._slices[v, i] = part or self.leaf(aval, (path, i), f"{found[1] or path}/{i}")
                node.run, node.key, node.inputs = (lambda x: [lax.expand_dims(x[0], (0,))]), ("expand",), [part]
                node.eqn = None
            del flat.groups[value.leaf]
            renewed = True
        if renewed:  # dependencies changed
            for node in flat.nodes:
                read = [flat.values[i] for i in node.inputs]
                for o in node.outputs:
                    flat.values[o].leaves = frozenset().union(*(r.leaves for r in read))


def _single(eqn: Any, shape: tuple[int, ...]) -> int | None:
    """The i when the equation is x[i:i+1] on the leading axis and nothing else."""
    if eqn is None or eqn.primitive.name != "slice" or set(eqn.params["strides"] or (1,)) != {1}:
        return None
    start, limit = eqn.params["start_indices"], eqn.params["limit_indices"]
    whole = all(s == 0 and e == n for s, e, n in zip(start[1:], limit[1:], shape[1:], strict=True))
    return start[0] if whole and limit[0] == start[0] + 1 else None


def _scans(jaxpr: Any, flags: Sequence[bool]) -> bool:
    """Whether a flagged input is scanned over (as xs) anywhere inside."""
    marked = {v for v, flag in zip(jaxpr.invars, flags, strict=False) if flag}
    for eqn in jaxpr.eqns:
        ins = [not versions.is_literal(v) and v in marked for v in eqn.invars]
        if not any(ins):
            continue
        if eqn.primitive.name == "scan":
            parts = versions.scan_parts(eqn)
            if any(ins[parts.consts + parts.carry :]) or _scans(versions.open_jaxpr(parts.jaxpr)[0], ins):
                return True
        elif eqn.primitive.name in versions.CALLS:
            if _scans(versions.open_jaxpr(versions.called(eqn))[0], ins):
                return True
        elif eqn.primitive.name in ("convert_element_type", "copy"):
            marked.update(eqn.outvars)
    return False


def where(eqn: Any) -> str:
    """The user's line an equation comes from."""
    frames = getattr(eqn.source_info.traceback, "frames", ())
    for frame in frames:
        if "/site-packages/" not in frame.file_name and "/qjax/trace/" not in frame.file_name:
            return f"{os.path.basename(frame.file_name)}:{frame.line_num} ({frame.function_name})"
    return "an unknown line"


def _remedy(name: str) -> str:
    return {
        "scan": "If it loops over microbatches, give stages one; if over layers, scan over stacked leaves as xs.",
        "while": "Write the loop over layers as a scan over stacked leaves, or cut with a coarser by=.",
        "cond": "Cut with a by= whose groups hold all the branches.",
        "shard_map": "Cut the function inside shard_map.",
    }.get(name, "Its derivative rule belongs to the whole: cut with a by= that does not split it.")


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:4]) + (", ..." if len(names) > 4 else "")


def flatten(
    jaxpr: Any,
    avals: Sequence[Any],
    paths: Mapping[int, str],
    group: Callable[[str], tuple[str, str] | None],
    key: Callable[[Any], Hashable],
) -> Flat:
    """The flat form of a closed jaxpr whose input i is the leaf `paths[i]`, or a part of the batch."""
    build = Flattener(key, group)
    for i, aval in enumerate(avals):
        if i in paths:
            found = group(paths[i])
            build.flat.inputs.append(build.leaf(aval, (paths[i], None), found and found[0]))
        else:
            build.flat.inputs.append(build.value(aval, batch=True))
    build.flat.outputs = build.run(jaxpr, build.flat.inputs)
    build.split_python_stacks()
    return build.flat
