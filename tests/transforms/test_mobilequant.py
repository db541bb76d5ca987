"""MobileQuant: static ranges with published gradients, learned for the whole model at once and stored as learned."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax import recipes, transforms
from qjax.operators import Diag, Pre, Quantize
from qjax.reconstruct import LearnedQuantize
from tests import draw
from tests.transforms import toy

SHARES = {"low": jnp.float32(-0.2), "high": jnp.float32(-0.1)}


@pytest.mark.parametrize("fmt", ["int4_tensor_narrow_f32", "int4_tensor_affine_f32", "int8_tensor", "fp8_e4m3_tensor"])
def test_it_hardens_to_its_values(fmt):
    x = draw.normal(0, 2, 5, 8)
    learned = LearnedQuantize(qjax.as_format(fmt), jnp.array([[-2.0], [3.0]]), SHARES)

    @jax.jit
    def both(learned, x):
        return learned.apply(x), learned.harden().apply(x)

    used, hard = both(learned, x)
    np.testing.assert_array_equal(used, hard)
    assert float(jnp.max(used)) <= 3.0 * np.exp(-0.1) * 1.1 < float(jnp.max(jnp.abs(x))) * 1.5


def test_gradients_are_lsqs_times_what_moves_the_step():
    """d/ds of s round(x/s) is round(x/s) - x/s inside and the end beyond it; s is high exp(share) / 7."""
    fmt = qjax.as_format("int4_tensor_narrow_f32")
    x = np.random.default_rng(0).normal(size=(6, 5))

    def total(ends, shares, x):
        return jnp.sum(LearnedQuantize(fmt, ends, shares).apply(x))

    ends = jnp.array([[-1.0], [1.5]])
    by_ends, by_shares, by_x = jax.grad(total, argnums=(0, 1, 2))(ends, SHARES, jnp.asarray(x, jnp.float32))
    s = 1.5 * np.exp(-0.1) / 7
    y = x / s
    inside = np.abs(y) < 7
    slope = np.sum(np.where(inside, np.rint(y) - y, 7 * np.sign(y)))
    np.testing.assert_allclose(by_shares["high"], slope * s, rtol=1e-3)
    np.testing.assert_allclose(by_ends[:, 0], [0, slope * s / 1.5], rtol=1e-3)
    assert float(by_shares["low"]) == 0  # the smaller end of a symmetric range
    np.testing.assert_array_equal(by_x, inside)


def network(p, x):
    return toy.block(p["layers"]["1"], toy.block(p["layers"]["0"], x))


def subject():
    layers = toy.params()["layers"]
    return {"layers": {i: layers[i] for i in ("0", "1")}}, [b.at[:, 3].multiply(20.0) for b in toy.batches()]


WEIGHTS, INPUTS = "int4_affine_f32", "int4_tensor_affine_f32"


def test_the_whole_network_learns_and_is_stored_as_it_was_learned():
    p, batches = subject()
    q, report = qjax.run(recipes.mobilequant(WEIGHTS, INPUTS, 60, (1e-2, 5e-2, 2e-2)), network, p, batches)
    rows = [row for row in report.rows if row["method"].startswith("learn_maps")]
    assert len(rows) == 4 and len({row["error_after"] for row in rows}) == 1
    assert rows[0]["error_after"] < 0.8 * rows[0]["error_before"]
    fn = jax.jit(qjax.quantized(network, strict=True))
    found = [jnp.mean(jnp.square(fn(q, x) - network(p, x))) for x in batches]
    np.testing.assert_allclose(jnp.mean(jnp.stack(found)), rows[0]["error_after"], rtol=2e-3)
    leaf = q["layers"]["1"]["up"]
    assert isinstance(leaf.T, Diag) and isinstance(leaf.op.T, Diag)  # smoothed, then learned
    rounding = leaf.op.op
    assert isinstance(rounding, Pre) and isinstance(rounding.T, Quantize) and rounding.T.grid is not None
    assert isinstance(rounding.op, qjax.QArray)
    plan = qjax.plan(recipes.mobilequant(), network, p, batches[0])
    assert [len(p.transforms) for p in plan.passes] == [1, 1]  # all blocks are smoothed before the model is learned


def test_a_range_that_one_token_stretches_shrinks():
    """One huge entry whose weight is nothing: all there is to gain is a shorter range, and no map is there to help."""
    x = draw.normal(0, 64, 16).at[7, 2].set(40.0)
    p = {"w": draw.normal(1, 16, 4).at[2].set(0.0)}
    learned = transforms.learn_maps(
        None, "int8_channel", "int4_tensor_f32", optimizer=transforms.separate_rates(0.0, 0.0, 5e-2), steps=60,
        clip=True, static=True,
    )  # fmt: skip
    q, report = qjax.run(learned, lambda p, x: x @ p["w"], p, [x], schedule="whole")
    assert isinstance(q["w"].T, Quantize)
    assert report.rows[0]["error_after"] < 0.2 * report.rows[0]["error_before"]
    assert float(jnp.max(q["w"].T.apply(x))) < 10


BAD = {
    "static ranges of int8 behind Scales": ("int8", True, transforms.Scales()),
    "static ranges of None behind": (None, True, transforms.Scales()),
    "clip=True and Scales": ("int8_tensor", False, transforms.Scales()),
    "behind Banded": ("int8_tensor", True, transforms.Banded()),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    inputs, clip, rule = BAD[message]
    with pytest.raises(ValueError, match=message):
        transforms.learn_maps(rule, "int4", inputs, optimizer=None, steps=1, clip=clip, static=True)
