"""Rules of calls and control flow: bodies are traced again with leaves inside; statistics leave as extra outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from qjax.trace import versions
from qjax.trace.interpreter import Rule, array, evaluate
from qjax.trace.leaf import Leaf
from qjax.trace.scans import fixed, restored, scan


def call(jaxpr: Any, tape: Any, eqn: Any) -> Callable[..., Any]:
    """A jaxpr as a function of arrays and leaves that returns (arrays, statistics)."""

    def f(*inputs: Any) -> Any:
        frame = tape.child()
        outs = [array(o, frame, eqn) for o in evaluate(jaxpr, inputs, frame)]
        return outs, frame.take()

    return f


def inline(eqn: Any, inputs: Sequence[Any], tape: Any) -> list[Any]:
    """A call that means nothing but its body."""
    return evaluate(versions.called(eqn), inputs, tape)


def jit(eqn: Any, inputs: Sequence[Any], tape: Any) -> list[Any]:
    """Compiled once for all leaves of one structure, or entered where statistics are wanted."""
    return tape.jit(eqn, inputs)


def remat(eqn: Any, inputs: Sequence[Any], tape: Any) -> list[Any]:
    """A checkpoint stays one; statistics are its outputs."""
    p = eqn.params
    if p["differentiated"]:  # the backward pass of a checkpoint: it computes the forward pass again
        again = tape.recomputing()
        values = [x for x in inputs if not isinstance(x, Leaf)]
        barrier = iter(lax.optimization_barrier(values) if p["prevent_cse"] and values else values)
        outs = evaluate(versions.called(eqn), [x if isinstance(x, Leaf) else next(barrier) for x in inputs], again)
        tape.add(again.take())
        return outs
    run = jax.checkpoint(call(versions.called(eqn), tape, eqn), prevent_cse=p["prevent_cse"], policy=p["policy"])
    outs, stats = run(*inputs)
    tape.add(stats)
    return outs


def cond(eqn: Any, inputs: Sequence[Any], tape: Any) -> list[Any]:
    """Every branch returns the statistics of all, its own filled in."""
    branches = [call(jaxpr, tape, eqn) for jaxpr in eqn.params["branches"]]
    which, operands = array(inputs[0], tape, eqn), inputs[1:]
    union: dict[Any, Any] = {}
    if tape.observes:
        for branch in branches:
            for key, values in jax.eval_shape(branch, *operands)[1].items():
                union[key] = {**union.get(key, {}), **values}

    def complete(branch: Any) -> Any:
        def run(*operands: Any) -> Any:
            outs, stats = branch(*operands)
            return outs, tape.combine(tape.zero(union), stats)

        return run

    outs, stats = lax.switch(which, [complete(b) for b in branches], *operands)
    tape.add(stats)
    return outs


def while_(eqn: Any, inputs: Sequence[Any], tape: Any) -> list[Any]:
    """Statistics are carried beside the state; operators the loop carries unchanged are its constants."""
    p = versions.while_parts(eqn)
    n = p.condition_consts
    condition_consts, body_consts, carry = inputs[:n], inputs[n : n + p.body_consts], inputs[n + p.body_consts :]
    kept = fixed(p.body, p.body_consts, carry)
    outs = eqn.outvars
    init = [carried(v, outs[i].aval, tape, eqn) for i, v in enumerate(carry) if i not in kept]
    body = call(p.body, tape, eqn)

    def step(state: Any) -> Any:
        new, stats = body(*body_consts, *restored(state, kept, len(carry)))
        return [o for i, o in enumerate(new) if i not in kept], stats

    def condition(state: Any) -> Any:
        frame = tape.muted()
        (go,) = evaluate(p.condition, [*condition_consts, *restored(state[0], kept, len(carry))], frame)
        return go

    zero = tape.zero(jax.eval_shape(step, init)[1]) if tape.observes else {}

    def both(state: Any) -> Any:
        new, stats = step(state[0])
        return new, tape.combine(state[1], stats)

    final, stats = lax.while_loop(condition, both, (init, zero))
    tape.add(stats)
    return restored(final, kept, len(carry))


def carried(value: Any, aval: Any, tape: Any, eqn: Any) -> Any:
    """A carry's first value as an array of the carry's own type."""
    value = array(value, tape, eqn)
    return value if isinstance(value, jax.Array) else jnp.asarray(value, aval.dtype)


def custom_vjp(eqn: Any, inputs: Sequence[Any], tape: Any) -> list[Any] | None:
    """Observed from inside, with its own gradient; where an operator arrives, dequantized and kept whole."""
    if not tape.observes or any(isinstance(x, Leaf) and x.view is not None for x in inputs):
        return None
    run = call(versions.called(eqn), tape, eqn)

    def whole(*values: Any) -> Any:
        return versions.bind(eqn, [x.value if isinstance(x, Leaf) else x for x in values])

    f = jax.custom_vjp(run)
    f.defvjp(lambda *v: (run(*v), jax.vjp(whole, *v)[1]), lambda pull, ct: pull(ct[0]))
    outs, stats = f(*inputs)
    tape.add(stats)
    return outs


def custom_jvp(eqn: Any, inputs: Sequence[Any], tape: Any) -> list[Any] | None:
    """As `custom_vjp`, for the forward rule."""
    if not tape.observes or any(isinstance(x, Leaf) and x.view is not None for x in inputs):
        return None
    run = call(versions.called(eqn), tape, eqn)

    def whole(*values: Any) -> Any:
        return versions.bind(eqn, [x.value if isinstance(x, Leaf) else x for x in values])

    f = jax.custom_jvp(run)

    @f.defjvp
    def tangents(primals: Any, directions: Any) -> Any:
        out = run(*primals)
        return out, (jax.jvp(whole, primals, directions)[1], jax.tree.map(_no_tangent, out[1]))

    outs, stats = f(*inputs)
    tape.add(stats)
    return outs


def _no_tangent(value: Any) -> Any:
    if jnp.issubdtype(value.dtype, jnp.inexact):
        return jnp.zeros_like(value)
    return np.zeros(value.shape, jax.dtypes.float0)


RULES: dict[str, Rule] = {
    "jit": jit,
    "pjit": jit,
    "closed_call": inline,
    "core_call": inline,
    "remat2": remat,
    "checkpoint": remat,
    "custom_jvp_call": custom_jvp,
    "custom_vjp_call": custom_vjp,
    "cond": cond,
    "while": while_,
    "scan": scan,
}
