"""Maps and ranges learned together: the block keeps its function, its rounded error falls, ranges do their share."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax import recipes, transforms
from qjax.operators import BlockKronecker, Pre
from tests import draw
from tests.transforms import toy


def block(p, x):
    return toy.block(p["layers"]["0"], x)


def subject(louder: float = 1.0):
    """A block whose input has a channel of outliers, with a few large weights."""
    p, batches = toy.params(), [louder * b.at[:, 3].multiply(20.0) for b in toy.batches()]
    layer = {name: w.at[1, ::3].multiply(5.0) for name, w in p["layers"]["0"].items()}
    return {"layers": {"0": layer}}, batches


def error(p, q, batches) -> float:
    fn = jax.jit(qjax.quantized(block, strict=True))
    return float(jnp.mean(jnp.stack([jnp.mean(jnp.square(fn(q, x) - block(p, x))) for x in batches])))


WEIGHTS, INPUTS, GROUPS = "int4_affine_f32", "int6_affine_f32", "int4_g8_f32"
LEARNED = {
    "omniquant": lambda: recipes.omniquant(WEIGHTS, INPUTS, steps=60, rates=(1e-2, 3e-2)),
    "affinequant": lambda: recipes.affinequant(WEIGHTS, INPUTS, block=8, steps=60, rates=(1e-2, 5e-2)),
    "batquant": lambda: recipes.batquant(GROUPS, GROUPS, block=8, shared=4, steps=60, rates=(5e-3, 3e-2)),
}


@pytest.mark.parametrize("name", LEARNED)
def test_the_learned_block_errs_less_than_its_start_and_than_min_max(name):
    """Descent through rounding is chaotic, its end a matter of the last bit: the median of three starts is judged."""
    recipe, rows = LEARNED[name](), []
    for louder in (1.002, 1.001, 1.0):
        p, batches = subject(louder)
        q, report = qjax.run(recipe, block, p, batches)
        rows.append(next(row for row in report.rows if row["path"] == "layers/0/up"))
    # What was learned is what is stored: the codes give the error that descent reported.
    np.testing.assert_allclose(error(p, q, batches), rows[-1]["error_after"], rtol=2e-3)
    fmt, inputs = (GROUPS, GROUPS) if name == "batquant" else (WEIGHTS, INPUTS)
    plain, _ = qjax.run(qjax.chain(qjax.rtn(fmt), qjax.act_quantize(inputs)), block, p, batches)
    after, before = (np.median([row[column] for row in rows]) for column in ("error_after", "error_before"))
    assert after < 0.9 * min(before, error(p, plain, batches))


def linear(p, x):
    return x @ p["w"]


def test_maps_alone_keep_the_function():
    p, x = {"w": draw.normal(0, 16, 4)}, draw.normal(1, 24, 16).at[:, 3].multiply(20.0) + 1.0
    only = transforms.learn_maps(
        transforms.Scales(0.5, shift=True), WEIGHTS, optimizer=transforms.separate_rates(5e-3, 0.0), steps=20
    )
    q, report = qjax.run(only, linear, p, [x], schedule="whole")
    got, want = qjax.quantized(linear, strict=True)(q, x), linear(p, x)
    assert float(jnp.linalg.norm(got - want)) <= 5e-5 * float(jnp.linalg.norm(want))
    assert isinstance(q["w"], Pre) and report.rows[0]["error_after"] <= report.rows[0]["error_before"]


def test_a_range_that_one_weight_stretches_is_clipped():
    """One output whose largest weight meets an input that is always near zero: clipping it is all there is to gain."""
    w = draw.normal(0, 32, 4, scale=0.1).at[5].set(3.0)
    x = draw.normal(1, 64, 32).at[:, 5].multiply(1e-3)
    recipe = recipes.omniquant("int3_affine_f32", None, steps=100, rates=(0.0, 8e-2), alpha=None)
    p = {"w": w}
    q, report = qjax.run(recipe, linear, p, [x], schedule="whole")
    top = np.asarray(qjax.dense(q["w"]))[5]
    assert report.rows[0]["error_after"] < 0.3 * report.rows[0]["error_before"]
    assert np.all(top < 1.5)


def test_a_correction_joins_the_weights_before_they_are_rounded():
    """ABQ-LLM: five balanced levels, and two vectors whose product makes up for what they lose."""
    p, x = {"down": draw.normal(0, 16, 8) + 0.3}, draw.normal(1, 48, 16) + 1.0
    errors = []
    for corrected in (("down",), ()):
        recipe = recipes.abq_llm(activations=None, steps=60, rates=(1e-2, 2e-2), corrected=corrected)
        q, report = qjax.run(recipe, lambda p, x: x @ p["down"], p, [x], schedule="whole")
        errors.append(report.rows[0]["error_after"])
        codes = np.asarray(q["down"].op.codes)
    assert codes.min() >= 0 and codes.max() <= 4
    assert errors[0] < 0.8 * errors[1]


def test_the_band_grows_and_ends_in_a_dominant_matrix():
    rule = transforms.Banded(block=4, share=0.5)
    low, high = -jnp.ones(8), jnp.ones(8)
    start = rule.init(low, high, [jnp.ones((8, 2))], jax.random.key(0))
    full = {**start, "mixing": jnp.ones((2, 4, 4))}
    for progress, reached in [(0.0, 0), (0.5, 1), (1.0, 3)]:
        m = rule.map({**full, "mixing": full["mixing"] + jnp.eye(4)[None]}, jnp.float32(progress))
        a = np.linalg.inv(np.asarray(m.maps[1].M[0]))
        far = np.abs(np.arange(4)[:, None] - np.arange(4))
        np.testing.assert_allclose(a, np.where(far == 0, 2.0, np.where(far <= reached, 0.5, 0.0)), atol=1e-5)


def test_block_kronecker_is_the_product_and_stays_in_its_block():
    g, own = draw.normal(0, 2, 2), draw.normal(1, 3, 4, 4)
    m = BlockKronecker(g, own)
    x = draw.normal(2, 5, 24)
    want = np.concatenate(
        [np.asarray(x[:, 8 * i : 8 * i + 8], np.float64) @ np.kron(g, own[i]) for i in range(3)], axis=1
    )
    np.testing.assert_allclose(m.apply(x), want, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(m.inverse().apply(m.apply(x)), x, rtol=1e-3, atol=1e-3)
    assert m.bits() == 32 * (4 + 48)


BAD = {
    "nothing is left to learn": lambda: transforms.learn_maps(None, "int4", optimizer=None, steps=1),
    "-1 steps": lambda: transforms.learn_maps(transforms.Scales(), "int4", optimizer=None, steps=-1),
    "on the 'both' stream": lambda: transforms.learn_maps(
        transforms.Scales(), "int4", optimizer=None, steps=1, stream="both"
    ),
    "blocks of 5 do not divide 16": lambda: transforms.Banded(5).init(*[jnp.ones(16)] * 2, [jnp.ones((16, 2))], None),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
