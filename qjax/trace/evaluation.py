"""The tape of a real evaluation: operators multiply, fallbacks are written down, statistics are collected."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax.numpy as jnp
import numpy as np

from qjax.trace import compiled, record, rules_control, rules_conv, rules_layout, rules_linear, versions
from qjax.trace.interpreter import Rule, evaluate
from qjax.trace.leaf import Leaf, dequantized
from qjax.trace.meeting import Meeting
from qjax.trace.record import Record, Stats
from qjax.trace.rules_conv import membership
from qjax.trace.tokens import Tokens
from qjax.trace.walk import same_numbers

Log = list[tuple[str, str, tuple[int, ...]]]  # (leaf path, primitive, shape) of each dequantization


class Dequantized(ValueError):
    """strict=True, and an operator would have been turned into a plain array; the message names leaf and primitive."""


@dataclass
class Fallbacks:
    """Dequantizations in the order they were first met; `log` receives (leaf path, primitive, shape)."""

    strict: bool = False
    log: Log | None = None
    names: Mapping[str, str] = field(
        default_factory=dict
    )  # inside a shared compiled block: slot -> path of the caller's leaf
    seen: set[Any] = field(default_factory=set)

    def add(self, path: str, primitive: str, shape: tuple[int, ...], where: Any) -> None:
        path = self.names.get(path, path)
        if self.strict:
            raise Dequantized(
                f"leaf {path!r} is dequantized by {primitive} to an array of shape {shape}: no rule multiplies it "
                f"there as it is stored (strict=True)"
            )
        key = (path, shape, where)
        if self.log is not None and key not in self.seen:  # loops trace their bodies more than once
            self.seen.add(key)
            self.log.append((path, primitive, shape))


@dataclass
class Watch:
    """What to measure, and what the walk found out about it beforehand (nothing of it changes while evaluating)."""

    wanted: record.Wanted
    contract: Mapping[str, tuple[int, ...]]  # the contracted axes of the use that makes a leaf a matrix
    outputs: Mapping[str, tuple[int, ...]]
    labels: Mapping[int, Any]  # equation -> token labels of its activation
    scans: Mapping[int, Any]  # scan equation -> the tokens it goes over


@dataclass
class Evaluation:
    """A tape (`qjax.trace.interpreter.Tape`) that computes. Frames of loops are children with a record of their own."""

    fallbacks: Fallbacks
    watch: Watch | None = None
    record: Record | None = None
    weights: Tokens | None = None
    again: bool = False  # in the backward pass of a checkpoint: forward products are repetitions
    scope: str = ""
    depth: int = 0  # scans over stacked leaves around this frame
    same: dict[Any, Any] = field(default_factory=dict)

    @property
    def rules(self) -> Mapping[str, Rule]:
        return RULES if self.watch is None else OBSERVING

    @property
    def observes(self) -> bool:
        return self.watch is not None

    # ---- arrays

    def bind(self, eqn: Any, inputs: Sequence[Any]) -> list[Any]:
        if self.watch is None:
            return versions.bind(eqn, inputs)
        key = same_numbers(eqn, inputs)
        if key is None:
            return versions.bind(eqn, inputs)
        if key not in self.same:
            self.same[key] = (inputs, versions.bind(eqn, inputs))  # holding the inputs keeps their ids their own
        return self.same[key][1]

    def dense(self, leaf: Leaf, eqn: Any) -> Any:
        if leaf.view is None:
            return leaf.value
        if eqn is not None:
            self.fallbacks.add(leaf.source.path, eqn.primitive.name, leaf.shape, id(eqn))
        return dequantized(leaf)

    def constant(self, value: Any) -> Any:
        return value

    def start(self, index: Any, limit: int) -> Any:
        if isinstance(index, (int, np.integer)):
            return min(max(int(index), 0), limit)
        return jnp.clip(index, 0, limit)

    # ---- frames

    def child(self, weights: Any = None, layered: bool = False) -> Evaluation:
        own = None if self.watch is None else Record(self.watch.wanted)
        weights = self.weights if weights is None else weights
        return dataclasses.replace(self, record=own, weights=weights, depth=self.depth + layered, same={})

    def muted(self) -> Evaluation:
        return Evaluation(self.fallbacks)

    def recomputing(self) -> Evaluation:
        return dataclasses.replace(self.child(), again=True)

    def jit(self, eqn: Any, inputs: Sequence[Any]) -> list[Any]:
        if self.watch is None:
            return compiled.call(eqn, inputs, self.fallbacks)
        scope = "/".join(filter(None, (self.scope, versions.scope(eqn))))
        # The same record and memory of equal numbers: a value that three calls read is measured once.
        return evaluate(versions.called(eqn), inputs, dataclasses.replace(self, scope=scope))

    # ---- statistics

    def take(self) -> Stats:
        return {} if self.record is None else self.record.take()

    def add(self, stats: Stats) -> None:
        if self.record is not None:
            self.record.add(stats)

    def combine(self, a: Stats, b: Stats) -> Stats:
        return {} if self.record is None else self.record.combine(a, b)

    def zero(self, shapes: Stats) -> Stats:
        return {} if self.record is None else self.record.zero(shapes)

    def enters(self, eqn: Any) -> bool:
        return self.watch is not None and eqn.primitive.name in ENTERED

    def scanned_weights(self, eqn: Any) -> Tokens | None:
        if self.weights is None or self.watch is None or not (over := self.watch.scans.get(id(eqn))):
            return None
        sliced = self.weights.over(over)
        if sliced is None:
            raise ValueError("weights= cannot follow a scan that cuts the tokens unevenly")
        return sliced

    def sites_of_layers(self, layered: bool) -> frozenset[tuple[str, int]]:
        if self.watch is None or not layered:
            return frozenset()
        return frozenset((name, 0) for name in self.watch.wanted if name not in self.watch.contract)

    def looked_up(self, leaf: Leaf, eqn: Any, dim: int) -> None:
        pass

    def use(self, meeting: Meeting) -> None:
        if self.watch is None or self.record is None:
            return
        source = meeting.leaf.source
        path = source.path
        if path not in self.watch.wanted or meeting.flaw:
            return
        if meeting.contract == self.watch.contract[path]:
            side = record.INPUT
        elif meeting.contract == self.watch.outputs[path]:
            side = record.OUTPUT
        else:
            return
        if self.again and side == record.INPUT:
            return
        features = 1
        for axis in meeting.contract:
            features *= source.shape[axis]
        site = record.leaf_site(source, side, features, meeting.batch)
        x, lead = meeting.x, 0 if meeting.groups is not None else len(meeting.batch)

        def rows() -> Any:
            matrix = meeting.matrix()
            return matrix.reshape(*matrix.shape[:lead], -1, matrix.shape[-1])

        def weights() -> Any:
            return self._weights(meeting.eqn, meeting.free, x.shape, f"leaf {path!r}")

        members = None if meeting.groups is None else partial(membership, meeting.groups, meeting.tokens)
        self.record.measure(site, x, rows, weights, meeting.key, members)

    def _weights(self, eqn: Any, free: Sequence[int], shape: Sequence[int], what: str) -> Any:
        if self.weights is None or self.watch is None:
            return None
        labels = self.watch.labels.get(id(eqn))
        taken = None if labels is None else tuple(labels[i] for i in free)
        rows = self.weights.rows(taken, [shape[i] for i in free])
        if rows is None:
            raise ValueError(
                f"weights= cannot follow the tokens to {what}: its rows are not the batch's tokens any more (they were "
                f"sorted, cut or mixed on the way); leave it out of the targets with where="
            )
        return rows

    def site(self, eqn: Any, x: Any) -> None:
        """A value marked by `checkpoint_name`, rows along its last axis."""
        assert self.watch is not None and self.record is not None
        name = "/".join(filter(None, (self.scope, versions.scope(eqn), eqn.params["name"])))
        if name not in self.watch.wanted or x.ndim == 0 or self.again:
            return
        free = range(x.ndim - 1)
        site = record.Site(name, record.ACTIVATION, x.shape[-1], pending=(0,) * self.depth)
        self.record.measure(
            site,
            x,
            lambda: x.reshape(-1, x.shape[-1]),
            lambda: self._weights(eqn, free, x.shape, f"site {name!r}"),
            ("site",),
        )


def name(eqn: Any, inputs: Sequence[Any], tape: Any) -> list[Any] | None:
    """A value marked by `checkpoint_name` is measured where it is wanted."""
    if isinstance(inputs[0], Leaf):
        return rules_layout.identity(eqn, inputs, tape)
    tape.site(eqn, inputs[0])
    return None


RULES: dict[str, Rule] = {
    **rules_layout.RULES,
    **rules_linear.RULES,
    **rules_conv.RULES,
    **rules_control.RULES,
}
OBSERVING: dict[str, Rule] = {**RULES, "name": name}
ENTERED = frozenset((*rules_control.RULES, "name"))
