"""A format for each leaf: the plan is that of the least error, computed by hand."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax.allocate import layer_errors
from qjax.formats import parse
from tests.reference import quantize_numpy
from tests.transforms import toy

FORMATS = ("int4_g8_narrow", "fp4_e2m1_g8", "int4_t1x8_narrow")


def errors(w: np.ndarray, x: np.ndarray | None) -> list[float]:
    lost = [w - quantize_numpy.quantize(w, parse(fmt)).astype(np.float64) for fmt in FORMATS]
    return [float(((d if x is None else x @ d) ** 2).sum()) for d in lost]


def test_errors_of_weights_and_outputs_are_sums_of_squares():
    rng = np.random.default_rng(0)
    w = rng.normal(size=(2, 16, 24)).astype(np.float32)
    x = rng.normal(size=(2, 40, 16)) * np.exp2(np.arange(16) % 4)
    gram = np.einsum("lti,ltj->lij", x, x).astype(np.float32)
    want = [sum(errors(w[i], x[i] if data else None)[f] for i in (0, 1)) for data in (0, 1) for f in range(3)]
    ours = [layer_errors(jnp.asarray(w), FORMATS, g) for g in (None, jnp.asarray(gram))]
    np.testing.assert_allclose(jnp.concatenate(ours), want, rtol=1e-4)


@pytest.mark.parametrize("by", ["weight", "output"])
def test_each_leaf_is_planned_in_the_format_that_loses_least(by):
    params = toy.params()
    recipe = qjax.chain(
        qjax.transforms.choose(FORMATS, by=by),
        qjax.partition({f: qjax.rtn(f) for f in FORMATS}, lambda path, use, plan: plan[path]),
    )
    q, report = qjax.run(recipe, toy.model, params, toy.batches())
    x = jnp.concatenate(toy.batches())
    chosen = set()
    for i in range(toy.LAYERS):
        for name, inputs in zip(("up", "down"), toy.inputs_of(params, i, x), strict=True):
            w = np.asarray(params["layers"][str(i)][name])
            best = FORMATS[int(np.argmin(errors(w, None if by == "weight" else np.asarray(inputs, np.float64))))]
            assert report.plan[f"layers/{i}/{name}"] == best
            expected = quantize_numpy.quantize(w, parse(best))
            np.testing.assert_array_equal(qjax.dequantize(q["layers"][str(i)][name]), expected)
            chosen.add(best)
    assert len(chosen) > 1  # else the plan would say nothing


def test_bad_options_are_refused():
    for formats, by in ((("int4_g8",), "weight"), (FORMATS, "loss")):
        with pytest.raises(ValueError, match="give at least two"):
            qjax.transforms.choose(formats, by=by)
