"""The white papers' pipelines are the steps they name, in order, and each step earns its place."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax import recipes
from qjax.operators import Post, Pre, Quantize
from qjax.trace.topology import Port, Product, Topology
from tests import draw

K = 16


@pytest.fixture(autouse=True, scope="module")
def quick_to_compile():
    """Here compiling is all the time, and without most of XLA's optimizations it takes half of it."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


WIRING = Topology(products=(Product(Port("gate", -1), Port("up", -1), Port("down", -2)),))
P = {n: draw.normal(i, K, K) * jnp.exp(draw.normal(10 + i, 1, K)) / 6 for i, n in enumerate(("gate", "up", "down"))}
BATCHES = [draw.normal(20 + i, 48, K).at[0, 3].mul(20.0) for i in range(2)]
X = jnp.concatenate(BATCHES)


def model(p, x):
    return (jax.nn.sigmoid(x @ p["gate"]) * (x @ p["up"])) @ p["down"]


def run(recipe):
    q, report = qjax.run(recipe, model, P, BATCHES, schedule="whole", topology=WIRING)
    return q, report, float(jnp.sum((jax.jit(qjax.quantized(model))(q, X) - model(P, X)) ** 2))


@pytest.mark.parametrize("rounding", ["nearest", "learned"])
def test_the_white_papers_order(rounding):
    recipe = recipes.white_paper("int4_tensor_narrow_f32", rounding=rounding, steps=50)
    names = [t.name.split()[0] for t in recipe]
    weights = {"nearest": ["rtn", "bias_correction"], "learned": ["AdaRound"]}[rounding]
    assert names == ["equalize", *weights, "act_quantize"]
    q, _, error = run(recipe)
    assert all(isinstance(leaf, Pre) and isinstance(leaf.T, Quantize) for leaf in q.values())
    if rounding == "nearest":
        assert all(isinstance(leaf.op, Post) for leaf in q.values())
    plain = qjax.chain(qjax.rtn("int4_tensor_narrow_f32"), qjax.act_quantize("int8_tensor_affine", static=True))
    assert error < 0.6 * run(plain)[2]


def test_int8_workflow_calibrates_and_keeps_the_worst():
    q, _, _ = run(recipes.int8_workflow("99.9"))
    clip = 127 * jax.tree.leaves(q["gate"].T.grid)[0].astype(jnp.float32).item()
    # A histogram of 16 bins an octave is right within 1/16, a bfloat16 scale within 1/256.
    assert clip == pytest.approx(np.percentile(np.abs(X), 99.9), rel=0.07) and clip < 0.9 * float(jnp.abs(X).max())
    _, _, all_rounded = run(recipes.int8_workflow("max"))
    kept, report, error = run(recipes.int8_workflow("max", share=1 / 3))
    (worst,) = [path for path, leaf in kept.items() if isinstance(leaf, jax.Array)]
    assert error < 0.7 * all_rounded and report.plan[worst] == "float"
