"""Programs that do not grow with the matrix: the same equations at any number of inputs, loops not unrolled."""

from __future__ import annotations

import jax
import jax.extend
import jax.numpy as jnp
import pytest

from qjax import solvers

N, FORMAT = 8, "int3_g16_f32"

SOLVERS = {
    "alternating": lambda w, h, key: solvers.alternating(w, h, FORMAT),
    "decoupleq": lambda w, h, key: solvers.decoupleq(w, h, FORMAT),
    "framequant": lambda w, h, key: solvers.framequant(w, h, FORMAT, key),
    "gpfq": lambda w, h, key: solvers.gpfq(w, h, FORMAT, cross_gram=h),
    "gptaq": lambda w, h, key: solvers.gptaq(w, h, h, FORMAT, compensation=0.25),
    "gptq static": lambda w, h, key: solvers.gptq.solve(w, h, FORMAT, groups="static"),
    "gptq stale": lambda w, h, key: solvers.gptq.solve(w, h, FORMAT, groups="stale"),
    "gptq fresh": lambda w, h, key: solvers.gptq.solve(w, h, FORMAT, groups="fresh"),
    "gptqt": lambda w, h, key: solvers.gptqt(w, h, "int2_g16"),
    "hqq": lambda w, h, key: solvers.hqq(w, FORMAT),
    "obq": lambda w, h, key: solvers.obq(w, h, FORMAT),
    "owq": lambda w, h, key: solvers.owq(w, h, FORMAT, channels=3),
    "quantease": lambda w, h, key: solvers.quantease(w, h, FORMAT, outliers=0.01),
    "quip": lambda w, h, key: solvers.quip(w, h, FORMAT, key),
    "sigma_delta": lambda w, h, key: solvers.sigma_delta(w, FORMAT),
    "squeezellm": lambda w, h, key: solvers.squeezellm(w, jnp.diagonal(h)[:, None], "int2"),
    "spqr": lambda w, h, key: solvers.spqr(w, h, FORMAT, outliers=0.01),
}


def count(jaxpr: jax.extend.core.Jaxpr) -> int:
    """Equations, those of loop bodies and calls included."""
    inner = (value for e in jaxpr.eqns for value in e.params.values())
    flat = (v for value in inner for v in (value if isinstance(value, tuple) else (value,)))
    below = (getattr(v, "jaxpr", v) for v in flat)
    return len(jaxpr.eqns) + sum(count(j) for j in below if hasattr(j, "eqns"))


@pytest.mark.parametrize("name", SOLVERS)
def test_equations_do_not_grow(name: str) -> None:
    def size(rows: int) -> int:
        shapes = jax.ShapeDtypeStruct((rows, N), jnp.float32), jax.ShapeDtypeStruct((rows, rows), jnp.float32)
        return count(jax.make_jaxpr(SOLVERS[name])(*shapes, jax.random.key(0)).jaxpr)

    # The Gram triangle is halved at most three times: above that width all is alike.
    assert size(1024) == size(2048) > 20
