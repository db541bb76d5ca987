"""The white papers' pipelines are the steps they name, in order, and each step earns its place."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import qjax
from qjax import recipes, transforms
from qjax.operators import Post, Pre, Quantize
from qjax.trace.topology import Port, Product, Topology
from tests import draw

K = 16


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


def squares(outputs, batch):
    """The distance to twice what the float model says, which rounding alone cannot reach."""
    return jnp.mean((outputs - 2 * model(P, batch)) ** 2)


def test_a_step_of_fine_tuning_is_by_hand():
    """One step of plain descent: the gradient at the rounded weights, taken off the weights, which are then rounded."""
    tune = transforms.fine_tune("int4_narrow_f32", optimizer=optax.sgd(0.3), steps=1)
    q, report = qjax.run(tune, model, P, BATCHES[:1], schedule="whole", loss=squares)

    def rounded(p):
        return {name: qjax.dequantize(qjax.quantize(w, "int4_narrow_f32")) for name, w in p.items()}

    loss, slope = jax.value_and_grad(lambda p: squares(model(p, BATCHES[0]), BATCHES[0]))(rounded(P))
    want = rounded({name: w - 0.3 * slope[name] for name, w in P.items()})
    for name, leaf in q.items():
        np.testing.assert_allclose(qjax.dequantize(leaf), want[name], rtol=1e-4, atol=1e-5)
    (row, *_) = report.rows
    assert row["error_before"] == pytest.approx(float(loss), rel=1e-4)
    after = float(squares(model(want, BATCHES[0]), BATCHES[0]))
    assert row["error_after"] == pytest.approx(after, rel=1e-3) and after < row["error_before"]


def test_layers_are_rounded_in_turn_by_hand():
    """Gate and up are rounded; one step of descent moves down under them; then it is rounded."""
    turns = transforms.layer_by_layer("int4_narrow_f32", optimizer=optax.sgd(0.3), steps=1)
    q, report = qjax.run(turns, model, P, BATCHES[:1], schedule="whole", loss=squares)

    def rounded(w):
        return qjax.dequantize(qjax.quantize(w, "int4_narrow_f32"))

    first = {"gate": rounded(P["gate"]), "up": rounded(P["up"])}
    slope = jax.grad(lambda down: squares(model({**first, "down": down}, BATCHES[0]), BATCHES[0]))(P["down"])
    want = {**first, "down": rounded(P["down"] - 0.3 * slope)}
    for name, leaf in q.items():
        np.testing.assert_allclose(qjax.dequantize(leaf), want[name], rtol=1e-4, atol=1e-5)
    row = report.rows[-1]
    before = squares(model({**first, "down": rounded(P["down"])}, BATCHES[0]), BATCHES[0])
    assert row["error_before"] == pytest.approx(float(before), rel=1e-3)
    after = float(squares(model(want, BATCHES[0]), BATCHES[0]))
    assert row["error_after"] == pytest.approx(after, rel=1e-3) and after < row["error_before"]


def test_layers_still_in_float_make_good_for_the_rounded():
    recipe = recipes.layer_by_layer("int3_channel_narrow_f32", steps=60, rate=0.02)
    q, report = qjax.run(recipe, model, P, BATCHES, schedule="whole", loss=squares)
    gate = qjax.quantize(P["gate"], "int3_channel_narrow_f32")
    assert bool((q["gate"].codes == gate.codes).all())  # rounded before anything is trained
    row = report.rows[-1]
    mean = np.mean([float(squares(jax.jit(qjax.quantized(model))(q, x), x)) for x in BATCHES])
    assert row["error_after"] == pytest.approx(mean, rel=1e-3) and mean < 0.6 * row["error_before"]
    # Steps that lead away are taken back.
    away = transforms.layer_by_layer("int8_channel_f32", optimizer=optax.sgd(-1.0), steps=3)
    kept, _ = qjax.run(away, model, P, BATCHES, schedule="whole", loss=squares)
    assert bool((kept["down"].codes == qjax.quantize(P["down"], "int8_channel_f32").codes).all())
    with pytest.raises(ValueError, match="needs a loss"):
        qjax.run(recipe, model, P, BATCHES, schedule="whole")
    with pytest.raises(ValueError, match="-1 steps"):
        recipes.layer_by_layer(steps=-1)


def test_faq_trains_under_rounded_inputs():
    recipe = recipes.faq("int4_channel_narrow_f32", steps=40, rate=0.1, last=1e-3)
    q, report = qjax.run(recipe, model, P, BATCHES, schedule="whole", loss=squares)
    assert all(isinstance(leaf, Pre) and isinstance(leaf.T, Quantize) for leaf in q.values())
    mean = np.mean([float(squares(jax.jit(qjax.quantized(model))(q, x), x)) for x in BATCHES])
    row = report.rows[-1]
    assert row["error_after"] == pytest.approx(mean, rel=1e-3) and mean < 0.5 * row["error_before"]
    with pytest.raises(ValueError, match="already holds QArray"):
        qjax.run(qjax.chain(qjax.rtn("int8"), recipe), model, P, BATCHES, schedule="whole", loss=squares)
    with pytest.raises(ValueError, match="loss"):
        qjax.run(recipe, model, P, BATCHES, schedule="whole")
