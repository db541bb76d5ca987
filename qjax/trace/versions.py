"""Everything that differs between the jax versions qjax supports (0.10 to 0.12): fields of equations, closed jaxprs.

`tests/trace/test_versions.py` is the canary: it fails on a jax whose equations look different from what is read here.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend.core as jex


class Scan(NamedTuple):
    """The parts of a scan equation; inputs are consts, then carry, then the scanned ones."""

    jaxpr: Any
    consts: int
    carry: int
    length: int
    reverse: bool
    unroll: int


class While(NamedTuple):
    """The parts of a while equation; inputs are the condition's consts, the body's consts, then the carry."""

    condition: Any
    body: Any
    condition_consts: int
    body_consts: int


CALLS: dict[str, str] = {
    "jit": "jaxpr",
    "pjit": "jaxpr",
    "closed_call": "call_jaxpr",
    "core_call": "call_jaxpr",
    "remat2": "jaxpr",
    "checkpoint": "jaxpr",
    "custom_jvp_call": "call_jaxpr",
    "custom_vjp_call": "call_jaxpr",
}


def open_jaxpr(jaxpr: Any) -> tuple[Any, Sequence[Any]]:
    """(jaxpr, consts) of an open or closed jaxpr: 0.12 has one class for both."""
    return getattr(jaxpr, "jaxpr", jaxpr), getattr(jaxpr, "consts", ())


def called(eqn: Any) -> Any:
    """The jaxpr of an equation that calls one function (`CALLS`)."""
    key = CALLS[eqn.primitive.name]
    return eqn.params[key] if key in eqn.params else eqn.params["jaxpr"]


def scan_parts(eqn: Any) -> Scan:
    """The parts of a scan equation."""
    p = eqn.params
    if "num_consts" in p:
        consts, carry = p["num_consts"], p["num_carry"]
    else:  # 0.12: the inputs are described by a tree (consts, carry, xs)
        consts, carry = (len(list(part)) for part in p["ft_in"].unpack()[:2])
    return Scan(p["jaxpr"], consts, carry, p["length"], p["reverse"], p["unroll"])


def while_parts(eqn: Any) -> While:
    """The parts of a while equation."""
    p = eqn.params
    return While(p["cond_jaxpr"], p["body_jaxpr"], p["cond_nconsts"], p["body_nconsts"])


def inner_jaxprs(eqn: Any) -> list[Any]:
    """Every jaxpr among the parameters of an equation."""
    found = []
    for value in eqn.params.values():
        for item in value if isinstance(value, tuple | list) else (value,):
            found += [item] if hasattr(open_jaxpr(item)[0], "eqns") else []
    return found


def bind(eqn: Any, inputs: Sequence[Any]) -> list[Any]:
    """Evaluate one equation on arrays, in the context it was traced in."""
    with eqn.ctx.manager:
        out = eqn.primitive.bind(*inputs, **eqn.primitive.get_bind_params(eqn.params))
    return list(out) if eqn.primitive.multiple_results else [out]


def is_literal(v: Any) -> bool:
    """Whether a variable of a jaxpr is a number written in it."""
    return isinstance(v, jex.Literal)


def trace(fn: Callable[..., Any], *specs: Any) -> Any:
    """The closed jaxpr of a function of arrays that returns a flat list of arrays."""
    return jax.make_jaxpr(fn)(*specs)


def scope(eqn: Any) -> str:
    """The `jax.named_scope` an equation was traced in, without the names of transformations."""
    return re.sub(r"\w+\(([^()]*)\)", r"\1", str(eqn.source_info.name_stack)).strip("/")
