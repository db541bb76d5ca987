"""Range estimators, roundings and metrics."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax import metrics, ranges, rounding
from qjax.formats import E2M1, NF4, Int
from qjax.quantization import check, dequantize, fit, outer_steps, quantize
from qjax.ranges.reductions import ends, largest_magnitude
from tests import draw


def heavy(shape=(64, 8)):
    return draw.student(0, 3.0, *shape)


@pytest.mark.parametrize("name", ["int3_g32", "int3_g32_affine", "nvfp4", "mxfp4_ceil", "nf4_g32", "int4_g32_signed"])
def test_the_search_never_loses_to_the_full_range(name):
    w = heavy()
    plain, searched = quantize(w, name), quantize(w, name, range=ranges.mse())
    check(searched)
    error = [np.square(np.asarray(dequantize(q) - w)).reshape(-1, 16, 8).sum(axis=1) for q in (plain, searched)]
    block = {"nvfp4": 1}.get(name, 2)
    error = [e.reshape(-1, block, 8).sum(axis=1) for e in error]
    assert (error[1] <= error[0] * (1 + 1e-5)).all()
    assert error[1].sum() < error[0].sum()


def test_the_search_equals_a_loop():
    w = np.asarray(heavy((32, 3)))
    q = quantize(jnp.asarray(w), "int3_g32_f32", range=ranges.mse(points=20, shrink=0.5))
    best = np.full((1, 3), np.inf)
    chosen = np.zeros((1, 3), np.float32)
    for i in range(20):
        factor = np.float32(1) - np.float32(0.5 / 20) * np.float32(i)
        scale = np.abs(w).max(0, keepdims=True) * factor / np.float32(3.5)
        error = ((np.clip(np.rint(w / scale), -4, 3) * scale - w) ** 2).sum(0, keepdims=True)
        chosen = np.where(error < best, scale, chosen)
        best = np.minimum(error, best)
    np.testing.assert_allclose(q.scales[0], chosen, rtol=1e-6)


def test_an_exact_block_keeps_its_range():
    w = jnp.asarray(np.tile(np.arange(-7, 9, dtype=np.float32)[:, None], (2, 3))) * 0.5
    np.testing.assert_array_equal(dequantize(quantize(w, "int4_g32_affine_f32", range=ranges.mse())), w)


def test_percentiles():
    w = heavy((100, 4))
    q = quantize(w, "int4_f32", range=ranges.percentile(90.0))
    np.testing.assert_allclose(q.scales[0] * 7.5, np.percentile(np.abs(w), 90, axis=0, keepdims=True), rtol=1e-6)
    everything = quantize(w, "int4", range=ranges.percentile(100.0))
    jax.tree.map(np.testing.assert_array_equal, everything, quantize(w, "int4"))
    affine = quantize(w, "int4_affine_f32", range=ranges.percentile(80.0))
    low, high = np.percentile(w, [10, 90], axis=0)
    np.testing.assert_allclose(affine.scales[0][0], (high - low) / 15, rtol=1e-5)


def test_a_weight_is_a_repetition_and_padding_weighs_nothing():
    x, times = np.asarray(heavy((40, 4))), np.random.default_rng(0).integers(0, 4, (40, 4))
    grid = fit(
        jnp.asarray(x), "int4_affine_f32", range=ranges.percentile(90.0), weights=jnp.asarray(times, jnp.float32)
    )
    repeated = [np.percentile(np.repeat(x[:, j], times[:, j]), [5, 95]) for j in range(4)]
    np.testing.assert_allclose(grid.scales[0][0], [(high - low) / 15 for low, high in repeated], rtol=1e-6)
    padded = fit(jnp.asarray(x), "int4_g32_f32", range=ranges.percentile(80.0))
    np.testing.assert_allclose(padded.scales[0][1] * 7.5, np.percentile(np.abs(x[32:]), 80, axis=0), rtol=1e-6)


def test_an_estimator_works_under_the_unclipped_outer_level():
    w = heavy()
    plain, searched = fit(w, "nvfp4"), fit(w, "nvfp4", range=ranges.mse())
    jax.tree.map(np.testing.assert_array_equal, outer_steps(plain), outer_steps(searched))
    assert hash(ranges.mse()) == hash(ranges.mse()) and ranges.percentile(99.0) == ranges.percentile(99.0)


@pytest.mark.parametrize("e", [Int(3, signed=False), E2M1, NF4], ids=lambda e: e.name)
def test_stochastic_rounding_picks_a_neighbour_and_is_right_on_average(e):
    x = jnp.linspace(0.9 * e.min, 0.9 * e.max, 7).astype(jnp.float32)
    many = jnp.tile(x, (4000, 1))
    drawn = jax.jit(lambda k: (e.decode(rounding.stochastic(k)(e, many, None)), *e.neighbours(x)))
    got, low, high = map(np.asarray, drawn(jax.random.key(1)))
    assert ((got == low) | (got == high)).all()
    np.testing.assert_allclose(got.mean(0), x, atol=4 * float((high - low).max()) / np.sqrt(4000) + 1e-6)


def test_stochastic_rounding_of_arrays():
    w = heavy()
    key = jax.random.key(3)
    for name in ("int4_g32_affine", "nvfp4", "nf4_g32"):
        q = quantize(w, name, rounding=rounding.stochastic(key))
        check(q)
        again = quantize(w, name, rounding=rounding.stochastic(key))
        np.testing.assert_array_equal(q.codes, again.codes)
        assert not np.array_equal(q.codes, quantize(w, name).codes)
    name = "int4_g32_affine"  # a zero point moves codes that are rounded
    np.testing.assert_array_equal(quantize(w, name, rounding=rounding.nearest).codes, quantize(w, name).codes)
    exact = dequantize(quantize(w, "mxfp4"))
    np.testing.assert_array_equal(dequantize(quantize(exact, "mxfp4", rounding=rounding.stochastic(key))), exact)


def test_metrics():
    w = heavy()
    noisy = w + 0.1 * heavy()
    np.testing.assert_allclose(metrics.relative_error(noisy, w), 0.1, rtol=1e-5)
    np.testing.assert_allclose(metrics.sqnr(noisy, w), 20.0, rtol=1e-4)
    np.testing.assert_allclose(metrics.mse(noisy, w), 0.01 * np.mean(np.square(w)), rtol=1e-4)
    np.testing.assert_allclose(metrics.cosine(noisy, w), 1.0, rtol=1e-5)
    np.testing.assert_allclose(metrics.sqnr(noisy * 1e-30, w * 1e-30), 20.0, rtol=1e-4)
    assert metrics.sqnr(w, w) == jnp.inf and metrics.relative_error(0 * w, 0 * w) == 0


def test_logit_metrics():
    p, q = heavy((5, 7)), heavy((5, 7)) + heavy((5, 7)) ** 2
    a, b = np.asarray(jax.nn.softmax(p), np.float64), np.asarray(jax.nn.softmax(q), np.float64)
    np.testing.assert_allclose(metrics.kl_divergence(q, p), (a * np.log(a / b)).sum(-1), rtol=1e-4)
    np.testing.assert_allclose(metrics.kl_divergence(p + 5, p), 0, atol=1e-6)
    assert metrics.top1_flips(p, p) == 0
    np.testing.assert_allclose(metrics.top1_flips(q, p), np.mean(q.argmax(-1) != p.argmax(-1)))
    masked = p.at[:, 0].set(-jnp.inf)
    assert np.isfinite(metrics.kl_divergence(masked, masked)).all()


def test_extremes_have_the_slopes_of_a_maximum_and_a_minimum():
    x = jnp.array([[0.5, -3.0, 2.0], [1.0, 0.25, -0.5]])
    slope = jax.jit(jax.grad(lambda x: jnp.sum(largest_magnitude(x, (1,))[1])))(x)
    np.testing.assert_array_equal(slope, [[0, -1, 0], [1, 0, 0]])
    width = jax.jit(jax.grad(lambda x: jnp.sum(ends(x, (1,))[1] - ends(x, (1,))[0])))(x)
    np.testing.assert_array_equal(width, [[0, -1, 1], [1, 0, -1]])
