"""Following shapes through a function without computing: what `uses` sees, and where the tokens of a batch go."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from qjax.trace import labels, rules_conv, rules_layout, rules_linear, versions
from qjax.trace.interpreter import Rule, evaluate
from qjax.trace.leaf import SCANNED, Leaf
from qjax.trace.meeting import Meeting


class Shape:
    """Stands for an array. Two stand-ins are one object exactly when they are known to hold equal numbers."""

    def __init__(
        self, shape: Sequence[int], dtype: Any, tokens: labels.Labels = None, origins: frozenset[str] = frozenset()
    ) -> None:
        self.shape, self.dtype = tuple(shape), dtype
        self.tokens = tokens  # which axes are tokens of the batch
        self.origins = origins  # the leaves whose product this is, up to elementwise functions

    @property
    def ndim(self) -> int:
        return len(self.shape)


@dataclass(frozen=True)
class Lookup:
    """Rows of a leaf, entries along one of its stored axes, are gathered."""

    leaf: Leaf
    primitive: str
    axis: int


class Walk:
    """The tape of a walk: nothing is computed, every use of a leaf is written down in program order."""

    def __init__(self) -> None:
        self.rules: Mapping[str, Rule] = RULES
        self.meetings: list[Meeting] = []
        self.others: list[tuple[Leaf, str]] = []  # uses that are no product
        self.lookups: list[Lookup] = []
        self.routers: set[str] = set()
        self.order: list[str] = []  # paths as they are first used
        self.scans: dict[int, labels.Axis] = {}  # scan equation -> the tokens it goes over
        self.labels: dict[int, labels.Labels] = {}  # product or site -> the tokens of its activation's axes
        self.sites: dict[str, tuple[int, ...]] = {}  # values marked by checkpoint_name: shape
        self.scope = ""
        self.known: dict[Any, Any] = {}

    def bind(self, eqn: Any, inputs: Sequence[Any]) -> list[Any]:
        key = same_numbers(eqn, inputs)
        if key is not None and key in self.known:
            return self.known[key][1]
        if eqn.primitive.name == "name":
            self._label(eqn, inputs[0])
            self.sites["/".join(filter(None, (self.scope, versions.scope(eqn), eqn.params["name"])))] = inputs[0].shape
        if eqn.primitive.name in ("top_k", "approx_top_k"):
            self.routers |= inputs[0].origins
        tokens = labels.propagate(eqn, [x.tokens for x in inputs])
        if eqn.primitive.name in PRODUCTS:
            met = self.meetings[-1] if self.meetings else None
            origins = frozenset([met.leaf.source.path]) if met is not None and met.eqn is eqn else frozenset()
        else:
            origins = frozenset().union(*(x.origins for x in inputs))
        out = [
            Shape(v.aval.shape, v.aval.dtype, t, origins) if hasattr(v.aval, "shape") else Shape((), None)
            for v, t in zip(eqn.outvars, tokens, strict=True)
        ]
        if key is not None:
            self.known[key] = (inputs, out)
        return out

    def dense(self, leaf: Leaf, eqn: Any) -> Any:
        if eqn is not None:
            self.others.append((leaf, eqn.primitive.name))
            self._seen(leaf)
        return leaf.value

    def enters(self, eqn: Any) -> bool:
        return eqn.primitive.name in CONTROL

    def constant(self, value: Any) -> Any:
        return Shape(value.shape, value.dtype) if np.ndim(value) else Constant(value)

    def start(self, index: Any, limit: int) -> Any:
        return min(max(int(index.value), 0), limit) if isinstance(index, Constant) else index

    def _label(self, eqn: Any, x: Shape) -> None:
        self.labels[id(eqn)] = labels.meet(self.labels.get(id(eqn)), x.tokens)

    def use(self, meeting: Meeting) -> None:
        self.meetings.append(meeting)
        self._label(meeting.eqn, meeting.x)
        self._seen(meeting.leaf)

    def looked_up(self, leaf: Leaf, eqn: Any, dim: int) -> None:
        axis = leaf.axes[dim]
        if len(axis) != 1 or axis[0][1] != 1 or leaf.source.dropped:
            self.dense(leaf, eqn)  # rows of a part: no lookup in the leaf as a table
            return
        self.lookups.append(Lookup(leaf, eqn.primitive.name, axis[0][0]))
        self._seen(leaf)

    def _seen(self, leaf: Leaf) -> None:
        if leaf.source.path not in self.order:
            self.order.append(leaf.source.path)


class Constant(Shape):
    """A scalar written in the program."""

    def __init__(self, value: Any) -> None:
        super().__init__((), np.result_type(value))
        self.value = value


PRODUCTS = ("dot_general", "conv_general_dilated", "ragged_dot_general", "gather")

# Equations that only repeat the numbers of their inputs: flax casts one x to bf16 once for each of q, k and v.
REPEATS = frozenset(
    [
        "convert_element_type",
        "reshape",
        "transpose",
        "broadcast_in_dim",
        "squeeze",
        "expand_dims",
        "stop_gradient",
        "copy",
        "name",
        "sharding_constraint",
    ]
)


def same_numbers(eqn: Any, inputs: Sequence[Any]) -> Any:
    """A key equal for equations whose outputs are the same numbers; None where that is not followed."""
    if eqn.primitive.name not in REPEATS:
        return None
    return eqn.primitive.name, tuple(map(id, inputs)), tuple((k, str(v)) for k, v in sorted(eqn.params.items()))


# ---- control flow: bodies are walked with what enters them


def call(eqn: Any, inputs: Sequence[Any], tape: Walk) -> list[Any]:
    """The body of a call, under its named scope."""
    outside = tape.scope
    tape.scope = "/".join(filter(None, (outside, versions.scope(eqn))))
    outs = evaluate(versions.called(eqn), inputs, tape)
    tape.scope = outside
    return outs


def cond(eqn: Any, inputs: Sequence[Any], tape: Walk) -> list[Any]:
    """Every branch; an output is what all of them agree on."""
    branches = [evaluate(b, inputs[1:], tape) for b in eqn.params["branches"]]
    return [
        outs[0] if all(o is outs[0] for o in outs) else _joined(outs, tape, eqn) for outs in zip(*branches, strict=True)
    ]


def _joined(outs: Sequence[Any], tape: Walk, eqn: Any) -> Any:
    arrays = [tape.dense(o, eqn) if isinstance(o, Leaf) else o for o in outs]
    tokens = arrays[0].tokens
    for a in arrays[1:]:
        tokens = labels.meet(tokens, a.tokens)
    return Shape(arrays[0].shape, arrays[0].dtype, tokens, frozenset().union(*(a.origins for a in arrays)))


def fixed(jaxpr: Any, consts: int, carry: Sequence[Any]) -> dict[int, Leaf]:
    """Leaves a loop carries unchanged (parameters in a decoding state): they are constants of the loop."""
    inner, _ = versions.open_jaxpr(jaxpr)
    return {i: v for i, v in enumerate(carry) if isinstance(v, Leaf) and inner.outvars[i] is inner.invars[consts + i]}


def _loop(
    eqn: Any, jaxpr: Any, consts: Sequence[Any], carry: Sequence[Any], xs: Sequence[Any], tape: Walk
) -> list[Any]:
    """Outputs of a loop's body once the token labels of the carry have settled."""
    kept = fixed(jaxpr, len(consts), carry)
    state = [v if i in kept else _fresh(tape.dense(v, eqn) if isinstance(v, Leaf) else v) for i, v in enumerate(carry)]
    while True:
        trial = Walk()
        outs = evaluate(jaxpr, [*consts, *state, *xs], trial)
        new = [s if i in kept else _settled(s, outs[i]) for i, s in enumerate(state)]
        if all(a is b for a, b in zip(new, state, strict=True)):
            break
        state = new
    return evaluate(jaxpr, [*consts, *state, *xs], tape)


def _fresh(x: Shape) -> Shape:
    return Shape(x.shape, x.dtype, x.tokens, x.origins)


def _settled(before: Shape, after: Any) -> Shape:
    tokens = labels.meet(before.tokens, after.value.tokens if isinstance(after, Leaf) else after.tokens)
    return before if tokens == before.tokens else Shape(before.shape, before.dtype, tokens, before.origins)


def while_(eqn: Any, inputs: Sequence[Any], tape: Walk) -> list[Any]:
    """Body and condition, once the carry has settled."""
    p = versions.while_parts(eqn)
    condition, body, carry = (
        inputs[: p.condition_consts],
        inputs[p.condition_consts : p.condition_consts + p.body_consts],
        inputs[p.condition_consts + p.body_consts :],
    )
    kept = fixed(p.body, p.body_consts, carry)
    outs = _loop(eqn, p.body, body, carry, (), tape)
    evaluate(p.condition, [*condition, *(_fresh(v) if isinstance(v, Shape) else v for v in carry)], tape)
    return [
        kept[i] if i in kept else _fresh(tape.dense(o, eqn) if isinstance(o, Leaf) else o) for i, o in enumerate(outs)
    ]


def scan(eqn: Any, inputs: Sequence[Any], tape: Walk) -> list[Any]:
    """The body on one entry of each scanned input."""
    p = versions.scan_parts(eqn)
    consts, carry, xs = inputs[: p.consts], inputs[p.consts : p.consts + p.carry], inputs[p.consts + p.carry :]
    over = labels.scanned([x.tokens for x in xs if isinstance(x, Shape)])
    if tape.scans.setdefault(id(eqn), over) != over:
        tape.scans[id(eqn)] = ()
    sliced = [_entry(eqn, x, over, tape) for x in xs]
    kept = fixed(p.jaxpr, p.consts, carry)
    outs = _loop(eqn, p.jaxpr, consts, carry, sliced, tape)
    final = [
        kept[i] if i in kept else _fresh(tape.dense(o, eqn) if isinstance(o, Leaf) else o)
        for i, o in enumerate(outs[: p.carry])
    ]
    stacked = []
    for o in outs[p.carry :]:
        if isinstance(o, Leaf) and (lifted := _lifted(o, xs)) is not None:
            stacked.append(lifted)
            continue
        o = tape.dense(o, eqn) if isinstance(o, Leaf) else o
        tokens = None if o.tokens is None else (over, *o.tokens)
        stacked.append(Shape((p.length, *o.shape), o.dtype, tokens, o.origins))
    return [*final, *stacked]


def _entry(eqn: Any, x: Any, over: labels.Axis | None, tape: Walk) -> Any:
    """What one iteration sees of a scanned input."""
    if isinstance(x, Leaf) and (layer := layer_of(x)) is not None:
        return layer.to(value=Shape(x.shape[1:], x.value.dtype))
    if isinstance(x, Leaf):
        x = tape.dense(x, eqn)
    tokens = None if x.tokens is None else x.tokens[1:]
    return Shape(x.shape[1:], x.dtype, tokens, x.origins)


def layer_of(leaf: Leaf) -> Leaf | None:
    """The leaf a scan's body sees, its leading axis sliced (array and view are left to the caller)."""
    axis = leaf.axes[0]
    if len(axis) != 1 or axis[0][1] != 1 or axis[0][0] in leaf.source.part:
        return None
    return leaf.to(axes=leaf.axes[1:], source=leaf.source.drop(axis[0][0], SCANNED))


def _lifted(out: Leaf, xs: Sequence[Any]) -> Leaf | None:
    """The stacked leaf behind an output that is one layer of it (residuals of a gradient): the scan stacks it again."""
    for x in xs:
        if isinstance(x, Leaf) and x.source.path == out.source.path:
            layer = layer_of(x)
            if layer is not None and layer.source == out.source:
                return out.to(
                    axes=(x.axes[0], *out.axes), source=x.source, value=Shape((x.shape[0], *out.shape), out.value.dtype)
                )
    return None


CONTROL: dict[str, Rule] = {
    **dict.fromkeys(versions.CALLS, call),
    "cond": cond,
    "while": while_,
    "scan": scan,
}
RULES: dict[str, Rule] = {**rules_layout.RULES, **rules_linear.RULES, **rules_conv.RULES, **CONTROL}
