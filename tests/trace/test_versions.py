"""The canary: equations of this jax look the way qjax.trace.versions reads them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax

from qjax.trace import versions


def equations(fn, *args):
    jaxpr, consts = versions.open_jaxpr(versions.trace(fn, *args))
    assert isinstance(consts, (list, tuple))
    return jaxpr.eqns


def test_scan_fields():
    def fn(bias, x, ws):
        return lax.scan(lambda c, w: (c @ w + bias, c.sum()), x, ws, reverse=True)

    (eqn,) = equations(fn, jnp.ones((2, 4)), jnp.ones((2, 4)), jnp.ones((3, 4, 4)))
    parts = versions.scan_parts(eqn)
    assert (parts.consts, parts.carry, parts.length, parts.reverse, parts.unroll) == (1, 1, 3, True, 1)
    inner, _ = versions.open_jaxpr(parts.jaxpr)
    assert [v.aval.shape for v in inner.invars] == [(2, 4), (2, 4), (4, 4)]
    assert len(inner.outvars) == 2


def test_while_fields():
    def fn(limit, x):
        return lax.while_loop(lambda c: c[0] < limit, lambda c: (c[0] + 1, c[1] * x), (0, x))

    eqn = next(e for e in equations(fn, jnp.int32(3), jnp.ones(2)) if e.primitive.name == "while")
    parts = versions.while_parts(eqn)
    assert (parts.condition_consts, parts.body_consts) == (1, 1)
    assert len(versions.open_jaxpr(parts.condition)[0].outvars) == 1
    assert len(versions.open_jaxpr(parts.body)[0].outvars) == 2


def test_calls_and_their_bodies():
    @jax.custom_vjp
    def f(x):
        return x * 2

    f.defvjp(lambda x: (f(x), None), lambda _, g: (g,))

    @jax.custom_jvp
    def g(x):
        return x * 3

    g.defjvp(lambda p, t: (g(*p), t[0]))

    def fn(x):
        return f(x) + g(x) + jax.jit(jnp.sin)(x) + jax.checkpoint(jnp.cos)(x)

    calls = [e for e in equations(fn, jnp.ones(2)) if e.primitive.name in versions.CALLS]
    assert [e.primitive.name for e in calls] == ["custom_vjp_call", "custom_jvp_call", "jit", "remat2"]
    assert all(versions.open_jaxpr(versions.called(e))[0].eqns for e in calls)
    assert {"policy", "prevent_cse", "differentiated"} <= calls[-1].params.keys()


def test_branches_and_inner_jaxprs():
    eqn = equations(lambda x: lax.cond(x[0] > 0, jnp.sin, jnp.cos, x), jnp.ones(2))[-1]
    assert eqn.primitive.name == "cond"
    assert len(eqn.params["branches"]) == len(versions.inner_jaxprs(eqn)) == 2


def test_binding_an_equation_gives_its_outputs():
    (eqn,) = equations(lambda x, y: lax.dot_general(x, y, (((1,), (0,)), ((), ()))), jnp.ones((2, 3)), jnp.ones((3, 4)))
    (out,) = versions.bind(eqn, [jnp.ones((2, 3)), jnp.ones((3, 4))])
    assert out.shape == (2, 4)
    assert not any(versions.is_literal(v) for v in eqn.invars)


def test_named_scopes_without_transformations():
    @jax.jit
    def block(x):
        return jnp.sin(x)

    def fn(x):
        with jax.named_scope("layers/3"):
            return block(x)

    def scopes(fn):
        return [versions.scope(e) for e in equations(fn, jnp.ones(2))]

    assert scopes(fn) == ["layers/3"]
    assert "layers/3" in scopes(jax.vmap(fn))
