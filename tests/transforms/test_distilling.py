"""Scales learned on what the float model predicts: codes stay, the optimum is least squares', the rest is refused."""

from __future__ import annotations

from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import qjax
from qjax import recipes, transforms
from qjax.metrics import kl_divergence
from tests import draw
from tests.transforms import toy


def squared(y: jax.Array, want: jax.Array) -> jax.Array:
    return (y - want) ** 2


def learn(**options):
    return transforms.distill_scales(**({"optimizer": optax.adam(1e-2), "steps": 60} | options))


def linear(p, x):
    return x @ p["w"]


def test_of_one_matrix_it_finds_the_scales_of_least_squares():
    x, w = draw.normal(1, 64, 6) * jnp.linspace(0.2, 3.0, 6)[None], draw.normal(2, 6, 5)
    recipe = qjax.chain(qjax.rtn("int3_f32"), learn(distance=squared, optimizer=optax.adam(3e-3), steps=600))
    q, report = qjax.run(recipe, linear, {"w": w}, [x], schedule="whole")
    begun = qjax.quantize(w, "int3_f32")
    base = np.asarray(x, np.float64) @ np.asarray(begun.codes, np.float64)
    best = np.sum(base * np.asarray(x @ w, np.float64), 0) / np.sum(base * base, 0)
    np.testing.assert_array_equal(q["w"].codes, begun.codes)
    np.testing.assert_allclose(q["w"].scales[0][0], best, rtol=2e-4)
    assert report.rows[-1]["error_after"] < report.rows[-1]["error_before"]


def test_a_model_comes_nearer_and_keeps_its_codes_its_bits_and_the_type_of_its_scales():
    recipe = qjax.chain(qjax.rotate_inputs(8), qjax.gptq("int2_g8_affine"), learn())
    p, batches = toy.params(), toy.batches()
    before, _ = qjax.run(recipe[:2], toy.model, p, batches)
    after, report = qjax.run(recipe, toy.model, p, batches)
    fn = jax.jit(qjax.quantized(toy.model, strict=True))

    def apart(q):
        return float(np.mean([jnp.mean(kl_divergence(fn(q, x), toy.model(p, x))) for x in batches]))

    row = next(row for row in report.rows if row["method"] == "distill_scales")
    np.testing.assert_allclose([row["error_before"], row["error_after"]], [apart(before), apart(after)], rtol=1e-3)
    assert row["error_after"] < 0.8 * row["error_before"]
    a, b = before["layers"]["1"]["up"].op, after["layers"]["1"]["up"].op
    np.testing.assert_array_equal(a.codes, b.codes)
    np.testing.assert_array_equal(a.offset, b.offset)
    assert b.scales[0].dtype == a.scales[0].dtype == jnp.bfloat16 and not jnp.array_equal(a.scales[0], b.scales[0])
    assert qjax.bits_per_weight(a) == qjax.bits_per_weight(b)


def test_a_rate_that_spoils_the_model_changes_nothing():
    recipe = qjax.chain(qjax.rtn("int4_g8"), learn(optimizer=optax.sgd(1e4), steps=3))
    q, _ = qjax.run(recipe, toy.model, toy.params(), toy.batches())
    want = qjax.quantize(toy.params()["layers"]["0"]["up"], "int4_g8")
    np.testing.assert_array_equal(q["layers"]["0"]["up"].scales[0], want.scales[0])


@pytest.mark.parametrize("method", ["rtn", "gptq", "gptaq"])
def test_the_combined_recipe_runs_on_a_decoder(method):
    from tests.transforms.test_learned_rotations import MODEL

    p = draw.parameters(MODEL.arch)
    recipe = recipes.few_bits("int3_g16_affine", method, steps=4)
    q, report = qjax.run(recipe, MODEL, p, [draw.integers(seed, 0, 40, 2, 9) for seed in (1, 2)])
    assert {row["method"] for row in report.rows} > {"distill_scales"}
    assert bool(jnp.isfinite(qjax.quantized(MODEL)(q, draw.integers(1, 0, 40, 2, 9))).all())


@pytest.mark.parametrize(
    ("message", "call"),
    [
        ("-1 steps", lambda: learn(steps=-1)),
        (
            "none of 1 targets has scales",
            lambda: qjax.run(learn(), linear, {"w": jnp.ones((6, 5))}, [jnp.ones((2, 6))]),
        ),
        ("method 'awq' is none of gptaq, gptq, rtn", lambda: recipes.few_bits(method=cast(Any, "awq"))),
    ],
)
def test_refusals(message, call):
    with pytest.raises(ValueError, match=message):
        call()
