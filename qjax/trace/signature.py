"""When two pieces of a trace are the same program: a hashable key of jaxprs, equation parameters and callables.

Keys err on the side of difference: what cannot be compared is keyed by identity, and costs one more compilation.
"""

from __future__ import annotations

import types
from collections.abc import Hashable
from typing import Any

import jax
import numpy as np

from qjax.trace import versions

_DEPTH = 12  # how far closures are followed before two callables count as different

# Where jax's wrapped functions leave results of tracing: no part of what they compute.
_EMPTY = {"Store", "EqualStore"}

# A jitted function's name, and where the Python code stood, say nothing about what is computed.
_IRRELEVANT = {"jit": {"name"}, "pjit": {"name"}}


class Signer:
    """Keys within one trace (whose objects stay alive, so that identities are not reused)."""

    def __init__(self) -> None:
        self._jaxprs: dict[int, tuple[Any, Hashable]] = {}
        self._short: dict[Hashable, int] = {}

    def aval(self, aval: Any) -> Hashable:
        return str(aval), bool(getattr(aval, "weak_type", False))

    def equation(self, eqn: Any) -> Hashable:
        """The key of an equation apart from its variables."""
        skip = _IRRELEVANT.get(eqn.primitive.name, ())
        params = tuple((k, self.value(v)) for k, v in sorted(eqn.params.items()) if k not in skip)
        outs = tuple(self.aval(v.aval) for v in eqn.outvars)
        return eqn.primitive.name, params, outs, tuple(sorted(map(str, eqn.effects)))

    def jaxpr(self, jaxpr: Any) -> Hashable:
        if id(jaxpr) in self._jaxprs:
            return self._jaxprs[id(jaxpr)][1]
        inner, consts = versions.open_jaxpr(jaxpr)
        number: dict[Any, int] = {}

        def name(v: Any) -> Hashable:
            if versions.is_literal(v):
                return "literal", self.value(v.val), self.aval(v.aval)
            return number.setdefault(v, len(number))

        bound = tuple((name(v), self.aval(v.aval)) for v in (*inner.constvars, *inner.invars))
        body = []
        for eqn in inner.eqns:
            reads = tuple(name(v) for v in eqn.invars)
            body.append((self.equation(eqn), reads, tuple(name(v) for v in eqn.outvars)))
        key = ("jaxpr", bound, tuple(body), tuple(name(v) for v in inner.outvars), tuple(map(self.value, consts)))
        short = ("jaxpr", self._short.setdefault(key, len(self._short)))
        self._jaxprs[id(jaxpr)] = (jaxpr, short)
        return short

    def value(self, value: Any, depth: int = 0) -> Hashable:
        """The key of anything that may stand in an equation's parameters."""
        if depth > _DEPTH:
            return "identity", id(value)
        if value is None or isinstance(value, (bool, int, float, complex, str, bytes, type, np.dtype)):
            return type(value).__name__, str(value) if isinstance(value, float) else value
        if isinstance(value, (np.ndarray, np.generic)):
            array = np.asarray(value)
            return (
                ("array", array.shape, str(array.dtype), array.tobytes()) if array.size <= 4096 else ("id", id(value))
            )
        if isinstance(value, jax.Array):
            return "array", value.shape, str(value.dtype), id(value)
        if isinstance(value, (tuple, list)):
            return type(value).__name__, tuple(self.value(v, depth + 1) for v in value)
        if isinstance(value, dict):
            return "dict", tuple((str(k), self.value(v, depth + 1)) for k, v in value.items())
        if hasattr(versions.open_jaxpr(value)[0], "eqns"):
            return self.jaxpr(value)
        if isinstance(value, types.FunctionType):
            return self._function(value, depth)
        if isinstance(value, types.MethodType):
            return "method", value.__func__.__code__, self.value(value.__self__, depth + 1)
        if hasattr(value, "func") and hasattr(value, "keywords"):  # functools.partial
            return "partial", *(self.value(v, depth + 1) for v in (value.func, value.args, dict(value.keywords)))
        if hasattr(value, "transforms") and hasattr(value, "f"):  # a function jax has wrapped
            return "wrapped", self.value(value.f, depth + 1), self.value(value.transforms, depth + 1)
        if type(value) is object or type(value).__name__ in _EMPTY:
            return ("placeholder",)
        try:
            return type(value), hash(value), value
        except TypeError:
            return "identity", id(value)

    def _function(self, f: types.FunctionType, depth: int) -> Hashable:
        try:
            cells = [c.cell_contents for c in f.__closure__ or ()]
        except ValueError:  # a cell not yet filled
            return "identity", id(f)
        captured = (*cells, f.__defaults__, f.__kwdefaults__)
        return "function", f.__code__, tuple(self.value(v, depth + 1) for v in captured)
