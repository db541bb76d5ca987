"""Recipes of solvers on the leaves of a model: experts each for itself, two streams, operators saved and loaded."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax import io, recipes, solvers
from tests.solvers import problem
from tests.solvers.problem import FORMAT
from tests.transforms import toy


def experts(p, x):
    return jnp.einsum("etk,ekn->etn", x, p["w"])


OUTLIERS = 8 / 256
SOLVED = {
    "quantease": (
        recipes.quantease(FORMAT, sweeps=4, outliers=OUTLIERS),
        lambda w, h: solvers.quantease(w, h, FORMAT, sweeps=4, outliers=OUTLIERS),
    ),
    "spqr": (
        recipes.spqr(FORMAT, outliers=OUTLIERS, scale_bits=None, damp=0.01),
        lambda w, h: solvers.spqr(w, h, FORMAT, outliers=OUTLIERS, damp=0.01),
    ),
}


@pytest.mark.parametrize("name", SOLVED)
def test_experts_are_solved_each_for_itself(name, tmp_path):
    recipe, solve = SOLVED[name]
    p = {"w": jnp.stack([jnp.asarray(problem.weight(seed)) for seed in (0, 1)])}
    x = jnp.stack([jnp.asarray(problem.inputs(seed)[0], jnp.float32) for seed in (0, 1)])
    q, report = qjax.run(recipe, experts, p, [x], schedule="whole")
    for e in range(2):
        alone = qjax.dense(solve(p["w"][e], x[e].T @ x[e]))
        together = qjax.dense(q["w"])[e]
        assert float(jnp.mean(jnp.abs(together - alone) < 1e-5)) > 0.97  # Gram matrices agree to rounding
    (row,) = report.rows
    assert row["error_after"] < row["error_before"] and row["bits"] > 3
    y = jax.jit(qjax.quantized(experts, strict=True))(q, x)
    np.testing.assert_allclose(y, experts({"w": qjax.dense(q["w"])}, x), rtol=1e-3, atol=1e-2)
    io.save(tmp_path / "q", q)
    kept, loaded = jax.tree.leaves(q), jax.tree.leaves(io.load(tmp_path / "q"))
    assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(kept, loaded, strict=True))


def test_rotations_are_drawn_for_each_expert_and_do_not_depend_on_the_walk():
    p = {"w": jnp.stack([jnp.asarray(problem.weight(0))] * 2)}
    x = jnp.stack([jnp.asarray(problem.inputs(0)[0], jnp.float32)] * 2)
    q, report = qjax.run(recipes.quip("int3"), experts, p, [x], schedule="whole")
    values = qjax.dense(q["w"])
    assert float(jnp.linalg.norm(values[0] - values[1])) > 0.01 * float(jnp.linalg.norm(values[0]))
    assert report.rows[0]["error_after"] < 0.5


def test_two_streams_pull_towards_the_float_model():
    p, batches = toy.params(), toy.batches()
    fn = qjax.quantized(toy.model)

    def error(q):
        return float(sum(jnp.sum((fn(q, x) - toy.model(p, x)) ** 2) for x in batches))

    plain, _ = qjax.run(qjax.gptq("int3_g8_f32"), toy.model, p, batches, within="sequential")
    recipe = recipes.rescomp("int3_g8_f32", order="none")
    q, report = qjax.run(recipe, toy.model, p, batches, within="sequential")
    assert error(q) < error(plain)
    assert "carries the float stream too" in report.passes
