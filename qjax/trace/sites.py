"""Activations by name, and taps: maps applied to them on the way (rotate, quantize, clip).

A site is a value marked with `jax.ad_checkpoint.checkpoint_name`, called by the `jax.named_scope`s around it and its
own name: "layers/3/attn/key". A product of two activations whose operands carry no mark is listed by its number within
its scope (an einsum is a scope): "layers_0/attention/bqhd,bkhd->bhqk/dot0/left". Under a scan over layers one name
stands for the value of every layer.
"""

from __future__ import annotations

import contextlib
import fnmatch
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import jax
import jax.numpy as jnp

from qjax.nodes import node
from qjax.trace import versions
from qjax.trace.arguments import traced
from qjax.trace.evaluation import RULES, Evaluation, Fallbacks, Log
from qjax.trace.interpreter import Rule, array, evaluate
from qjax.trace.leaf import Leaf, operator
from qjax.trace.paths import is_leaf

Tap = Callable[[jax.Array], jax.Array]  # or a map of qjax.operators: anything with `apply`

_ENTERED = {"jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "cond", "while", "scan"}
_KEEPS_MARK = {"reshape", "transpose", "convert_element_type", "broadcast_in_dim", "squeeze", "copy"}


@dataclass(frozen=True)
class Site:
    """`kind`: "marked" or "dot"; `count`: how often it occurs; `obstacle`: why no tap reaches it, or None."""

    name: str
    kind: str
    shape: tuple[int, ...]
    dtype: str
    count: int = 1
    obstacle: str | None = None


@node
@dataclass(frozen=True)
class Program:
    """What a function runs with, as one pytree: parameters, and a tap for each site name (or glob)."""

    params: Any
    taps: Mapping[str, Any] = field(default_factory=dict)


@node
@dataclass(frozen=True)
class Clip:
    """A tap: x limited to [low, high], scalars or arrays that broadcast over the last axis."""

    low: Any
    high: Any

    def apply(self, x: jax.Array) -> jax.Array:
        ends = (jnp.asarray(end).astype(x.dtype) for end in (self.low, self.high))
        low, high = (jnp.broadcast_to(end, x.shape) for end in ends)
        return jnp.clip(x, low, high)


def sites(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> dict[str, Site]:
    """The sites of fn(*args) in program order; the first argument holds the parameters. Nothing is computed.

    >>> import jax.numpy as jnp
    >>> from jax.ad_checkpoint import checkpoint_name
    >>> def fn(p, x):
    ...     x = checkpoint_name(x @ p, "hidden")
    ...     return x @ x.T
    >>> list(sites(fn, jnp.ones((3, 3)), jnp.ones((2, 3)))), list(sites(lambda p, x: x @ x.T, 0.0, jnp.ones((2, 3))))
    (['hidden'], ['dot0/left', 'dot0/right'])
    """
    program = traced(fn, args, kwargs)
    found = _List()
    found.walk(program.jaxpr, [not i.first for i in program.inputs], "", None)
    return found.sites


class _List:
    """Collects sites while following which values depend on the batch."""

    def __init__(self) -> None:
        self.sites: dict[str, Site] = {}
        self.turning: set[str] = set()  # those inside a loop or branch
        self.turns = 0  # loops and branches around what is walked

    def add(self, name: str, kind: str, aval: Any, obstacle: str | None) -> None:
        old = self.sites.get(name)
        count, obstacle = (old.count + 1, old.obstacle or obstacle) if old else (1, obstacle)
        self.sites[name] = Site(name, kind, tuple(aval.shape), str(aval.dtype), count, obstacle)
        if self.turns:
            self.turning.add(name)

    def walk(self, jaxpr: Any, flags: Sequence[bool], scope: str, obstacle: str | None) -> list[bool]:
        inner, _ = versions.open_jaxpr(jaxpr)
        active = {v for v, flag in zip(inner.invars, flags, strict=True) if flag}
        marked: set[Any] = set()
        numbers = _numbers(inner)

        def on(v: Any) -> bool:
            return not versions.is_literal(v) and v in active

        for eqn in inner.eqns:
            name, here = eqn.primitive.name, _join(scope, versions.scope(eqn))
            ins = [on(v) for v in eqn.invars]
            outs = [any(ins)] * len(eqn.outvars)
            if name == "name":
                self.add(_join(here, eqn.params["name"]), "marked", eqn.outvars[0].aval, obstacle)
                marked.add(eqn.outvars[0])
            elif name == "dot_general" and all(ins):
                for v, side in zip(eqn.invars, ("left", "right"), strict=True):
                    if v not in marked:
                        self.add(f"{_join(here, f'dot{numbers[id(eqn)]}')}/{side}", "dot", v.aval, obstacle)
            elif name in _KEEPS_MARK and not versions.is_literal(eqn.invars[0]) and eqn.invars[0] in marked:
                marked.add(eqn.outvars[0])
            elif versions.inner_jaxprs(eqn):
                turns = name in ("scan", "while", "cond")
                self.turns += turns
                outs = self.enter(eqn, ins, here, obstacle)
                self.turns -= turns
            active.update(v for v, flag in zip(eqn.outvars, outs, strict=True) if flag)
        return [on(v) for v in inner.outvars]

    def enter(self, eqn: Any, ins: list[bool], scope: str, obstacle: str | None) -> list[bool]:
        name = eqn.primitive.name
        if name == "scan":
            p = versions.scan_parts(eqn)
            return self.loop(p.jaxpr, ins[: p.consts], ins[p.consts :], p.carry, scope, obstacle)
        if name == "while":
            p = versions.while_parts(eqn)
            ins = ins[p.condition_consts :]
            body = ins[p.body_consts :]
            return self.loop(p.body, ins[: p.body_consts], body, len(body), scope, obstacle)
        if name == "cond":
            branches = [self.walk(b, ins[1:], scope, obstacle) for b in eqn.params["branches"]]
            return [any(outs) or ins[0] for outs in zip(*branches, strict=True)]
        if name not in _ENTERED:
            obstacle = obstacle or f"it lies inside a {name}, whose rule belongs to the whole"
        outs = [any(ins)] * len(eqn.outvars)
        for jaxpr in versions.inner_jaxprs(eqn):
            inner, _ = versions.open_jaxpr(jaxpr)
            given = ins if len(ins) == len(inner.invars) else [any(ins)] * len(inner.invars)
            found = self.walk(jaxpr, given, scope, obstacle)
            outs = found if len(found) == len(outs) else outs
        return outs

    def loop(
        self, jaxpr: Any, consts: list[bool], rest: list[bool], carry: int, scope: str, obstacle: str | None
    ) -> list[bool]:
        state, xs = rest[:carry], rest[carry:]
        while True:
            outs = _List().walk(jaxpr, [*consts, *state, *xs], scope, obstacle)
            new = [a or b for a, b in zip(state, outs[:carry], strict=True)]
            if new == state:
                return self.walk(jaxpr, [*consts, *state, *xs], scope, obstacle)
            state = new


def _join(*parts: str) -> str:
    return "/".join(filter(None, parts))


def _numbers(jaxpr: Any) -> dict[int, int]:
    """The number of each product among those of its scope, in program order."""
    count: dict[str, int] = {}
    numbers = {}
    for eqn in jaxpr.eqns:
        if eqn.primitive.name == "dot_general":
            scope = versions.scope(eqn)
            numbers[id(eqn)] = count.get(scope, 0)
            count[scope] = numbers[id(eqn)] + 1
    return numbers


def _all_numbers(jaxpr: Any, into: dict[int, int]) -> dict[int, int]:
    inner, _ = versions.open_jaxpr(jaxpr)
    into.update(_numbers(inner))
    for eqn in inner.eqns:
        for body in versions.inner_jaxprs(eqn):
            _all_numbers(body, into)
    return into


# ---- running with taps


@dataclass
class _Tapping(Evaluation):
    """Evaluates with taps. Every call and loop is entered, so that its sites are met."""

    taps: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[int, int] = field(default_factory=dict)
    kept: dict[str, list[Any]] = field(default_factory=dict)  # site -> its values; those of no other site are kept

    @property
    def rules(self) -> Mapping[str, Rule]:
        return _TAPPING

    def enters(self, eqn: Any) -> bool:
        return eqn.primitive.name in _TAPPING and (eqn.primitive.name in _ENTERED or eqn.primitive.name in _SITES)

    def jit(self, eqn: Any, inputs: Sequence[Any]) -> list[Any]:
        return evaluate(versions.called(eqn), inputs, self)

    def muted(self) -> Evaluation:
        return self  # a loop's condition is computed on tapped values, too

    def tap(self, name: str, x: Any) -> Any:
        tap = self.taps.get(name)
        if tap is not None and not isinstance(x, Leaf):
            out = tap.apply(x) if hasattr(tap, "apply") else tap(x)
            if out.shape != x.shape:
                raise ValueError(f"the tap of {name!r} turns {x.shape} into {out.shape}: a tap keeps the shape")
            x = out.astype(x.dtype)
        if name in self.kept:
            self.kept[name].append(array(x, self, None))
        return x


def _name(eqn: Any, inputs: Sequence[Any], tape: Any) -> list[Any] | None:
    if isinstance(inputs[0], Leaf):
        return RULES["name"](eqn, inputs, tape)
    return _bound(eqn, [tape.tap(_join(tape.scope, versions.scope(eqn), eqn.params["name"]), inputs[0])], tape)


def _dot(eqn: Any, inputs: Sequence[Any], tape: Any) -> list[Any] | None:
    if any(isinstance(x, Leaf) for x in inputs):
        return RULES["dot_general"](eqn, inputs, tape)
    site = _join(tape.scope, versions.scope(eqn), f"dot{tape.numbers[id(eqn)]}")
    return _bound(eqn, [tape.tap(f"{site}/{side}", x) for side, x in zip(("left", "right"), inputs, strict=True)], tape)


def _bound(eqn: Any, inputs: Sequence[Any], tape: Any) -> list[Any]:
    """The equation in the scope it was traced in, so that what looks at the tapped function finds the same sites."""
    scope = _join(tape.scope, versions.scope(eqn))
    with jax.named_scope(scope) if scope else contextlib.nullcontext():
        return versions.bind(eqn, inputs)


def _scoped(rule: Rule) -> Rule:
    """The rule inside the scope its equation was traced in."""

    def run(eqn: Any, inputs: Sequence[Any], tape: Any) -> list[Any] | None:
        return rule(eqn, inputs, replace(tape, scope=_join(tape.scope, versions.scope(eqn))))

    return run


_SITES = {"name", "dot_general"}
_TAPPING: dict[str, Rule] = {
    **RULES,
    **{name: _scoped(RULES[name]) for name in _ENTERED if name in RULES},
    "name": _name,
    "dot_general": _dot,
}


def tapped(fn: Callable[..., Any], *, strict: bool = False, log: Log | None = None) -> Callable[..., Any]:
    """Fn whose first argument may be a Program: it runs on the program's params with the taps applied at their sites.

    Leaves may be operators, as under `quantized` (`strict`, `log` as there). Taps are named by site or glob
    ("layers/*/attn/key"). jit, grad, vmap, scan and remat apply inside and outside. Without a Program it is
    `quantized(fn)`. Jitted blocks inside are entered: jit the whole.

    Raises ValueError for a tap that names no site (the sites are listed), one inside a custom derivative rule, one
    that changes a shape.
    """
    from qjax.trace.quantized import quantized

    @functools.wraps(fn)
    def run(program: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(program, Program):
            return quantized(fn, strict=strict, log=log)(program, *args, **kwargs)
        return _evaluated(fn, (), Fallbacks(strict, log), program, *args, **kwargs)[0]

    return run


def captured(fn: Callable[..., Any], *patterns: str) -> Callable[..., tuple[Any, dict[str, jax.Array]]]:
    """Fn that also gives its activations: (params or Program, ...) -> (outputs, {site: value behind its tap}).

    `patterns` are sites or globs of them ("layers/*/residual/ffn"). Leaves may be operators. Jit the whole: what nobody
    reads is then never computed.

    Raises ValueError for a pattern that names no site (the sites are listed), for a site that occurs several times, and
    for one inside a loop or branch, which has a value for every turn (`unstack_layers` unrolls our decoder).

    >>> import jax.numpy as jnp
    >>> from jax.ad_checkpoint import checkpoint_name
    >>> fn = lambda p, x: checkpoint_name(x @ p, "hidden").sum()
    >>> captured(fn, "hid*")(jnp.eye(2), jnp.ones((1, 2)))[1]["hidden"].tolist()
    [[1.0, 1.0]]
    """

    @functools.wraps(fn)
    def run(program: Any, *args: Any, **kwargs: Any) -> tuple[Any, dict[str, jax.Array]]:
        program = program if isinstance(program, Program) else Program(program)
        return _evaluated(fn, patterns, Fallbacks(), program, *args, **kwargs)

    return run


def _evaluated(
    fn: Callable[..., Any], patterns: Sequence[str], fallbacks: Fallbacks, program: Program, *args: Any, **kwargs: Any
) -> tuple[Any, dict[str, jax.Array]]:
    """The outputs of a program, and the sites that `patterns` name."""
    trace = traced(fn, (program.params, *args), kwargs)
    found = _List()
    found.walk(trace.jaxpr, [not i.first for i in trace.inputs], "", None)
    kept: dict[str, list[Any]] = {name: [] for p in patterns for name in _matching("captured", p, found.sites)}
    for name in kept:
        if found.sites[name].obstacle:
            raise ValueError(f"captured: the site {name!r} is out of reach: {found.sites[name].obstacle}")
        if name in found.turning or found.sites[name].count > 1:
            why = "lies in a loop or branch" if name in found.turning else "occurs several times"
            raise ValueError(f"captured: the site {name!r} {why}, so it has more than one value")
    taps, numbers = _resolve(program.taps, found.sites), _all_numbers(trace.jaxpr, {})
    tape = _Tapping(fallbacks, taps=taps, numbers=numbers, kept=kept)
    inputs = [operator(i.path, i.leaf) if is_leaf(i.leaf) else i.leaf for i in trace.inputs]
    outputs = trace.rebuild([array(o, tape, None) for o in evaluate(trace.jaxpr, inputs, tape)])
    return outputs, {name: values[0] for name, values in kept.items() if values}


def _matching(what: str, pattern: str, found: Mapping[str, Site]) -> list[str]:
    names = [pattern] if pattern in found else [n for n in found if fnmatch.fnmatchcase(n, pattern)]
    if not names:
        listed = ", ".join(list(found)[:12]) + (", ..." if len(found) > 12 else "")
        raise ValueError(f"{what} {pattern!r} names no site of this function; its sites are: {listed or 'none'}")
    return names


def _resolve(taps: Mapping[str, Any], found: Mapping[str, Site]) -> dict[str, Any]:
    resolved: dict[str, Any] = {}
    for pattern, tap in taps.items():
        for name in _matching("tap", pattern, found):
            if found[name].obstacle:
                raise ValueError(f"no tap reaches {name!r}: {found[name].obstacle}")
            if name in resolved:
                raise ValueError(f"two taps name the site {name!r}, one of them as {pattern!r}")
            resolved[name] = tap
    return resolved
