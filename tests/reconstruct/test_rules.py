"""Learned roundings: their forward pass is what hardens, their gradients are the published ones, and they help."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import qjax
from qjax.operators import Latent
from qjax.reconstruct import (
    AdaQuant,
    AdaRound,
    FlexRound,
    LoRARounding,
    LowRankUpdate,
    SignRound,
    TesseraQ,
    bounded,
    minimize,
    progressive_rounding,
    sign_descent,
)
from qjax.reconstruct.adaround import indecision, rectified
from qjax.reconstruct.rule import settled
from qjax.reconstruct.straight import exactly, project, scaled_grid
from qjax.transforms import learn
from tests.draw import normal
from tests.transforms import toy

RULES = (AdaRound, LoRARounding, LowRankUpdate, SignRound, FlexRound, AdaQuant, TesseraQ)
# Every rule on integers with a zero point, and on one of the grids whose steps are not equal.
CASES = [(rule, "int2_g8_affine") for rule in RULES]
CASES += [(rule, "mxfp4") for rule in (AdaRound, SignRound, AdaQuant)]
CASES += [(rule, "nf4_g64") for rule in (LoRARounding, FlexRound, TesseraQ)]


def draw(seed: int, *shape: int) -> jax.Array:
    return jax.random.normal(jax.random.key(seed), shape)


def perturbed(tree, seed: int, size: float):
    leaves, structure = jax.tree.flatten(tree)
    moved = [leaf + size * normal(seed + i, *leaf.shape) for i, leaf in enumerate(leaves)]
    return jax.tree.unflatten(structure, moved)


@pytest.mark.parametrize(("rule", "fmt"), CASES)
def test_starts_as_round_to_nearest_and_hardens_to_its_forward(rule, fmt):
    w = normal(0, 2, 32, 6)
    rule = rule(qjax.as_format(fmt))

    @jax.jit
    def both(w, theta):
        theta = rule.settle(theta)
        return rule.forward(w, theta), qjax.dequantize(rule.harden(w, theta))

    theta = jax.jit(rule.init)(w, jax.random.key(1))
    used, hard = both(w, theta)
    np.testing.assert_array_equal(used, hard)
    np.testing.assert_array_equal(hard, qjax.dequantize(qjax.quantize(w, fmt, axis=-2, batch_axes=1)))
    limits = bounded({"low": (0.1, 1.0), "high": (0.1, 1.0)})
    change = perturbed(jax.tree.map(jnp.zeros_like, theta["variables"]), 5, 0.3)
    change, _ = limits.update(change, optax.EmptyState(), theta["variables"])
    moved = {**theta, "variables": optax.apply_updates(theta["variables"], change)}
    used, other = both(w, moved)
    np.testing.assert_array_equal(used, other)
    assert bool((other != hard).any())
    values = settled({"w": Latent(w, moved, rule)})["w"].affine()[0]
    np.testing.assert_array_equal(values, other)


def test_gradients_are_lsqs():
    """q - w/s inside, the ends of the range beyond it (Esser et al. 2020, eq. 3), times the range's share of s."""
    w = normal(0, 8, 3)
    fmt = qjax.as_format("int3_channel_narrow_f32")

    def value(w, low, high):
        grid, learned = scaled_grid(w, fmt, low, high)
        return project(grid, w, learned), learned[0]

    @jax.jit
    def slopes(w, factor, cotangent):
        (_, scale), pull = jax.vjp(lambda f: value(w, f, f), factor)
        slope = jax.grad(lambda w: jnp.sum(project(*_fixed(w, fmt, factor)) * cotangent))(w)
        return scale, pull((cotangent, jnp.zeros_like(scale)))[0], slope

    factor, cotangent = np.full((1, 3), 0.6, np.float32), np.asarray(normal(1, 8, 3))
    scale, found, slope = map(np.asarray, slopes(w, factor, cotangent))
    y = np.asarray(w) / scale
    step = np.where(np.abs(y) <= 3, np.round(y) - y, np.sign(y) * 3)
    want = np.sum(cotangent * step, axis=0, keepdims=True) * scale / factor
    np.testing.assert_allclose(found, want, rtol=1e-5)
    np.testing.assert_allclose(slope, np.where(np.abs(y) <= 3, cotangent, 0), rtol=1e-6)


def _fixed(w, fmt, factor):
    grid, learned = scaled_grid(jax.lax.stop_gradient(w), fmt, factor, factor)
    return grid, w, learned


@pytest.mark.parametrize("fmt", ["int3_g8_affine_f32", "mxfp4"])
def test_a_step_along_the_gradient_of_the_range_lowers_the_error(fmt):
    w = normal(3, 64, 4) ** 3
    fmt = qjax.as_format(fmt)

    @jax.jit
    def error_and_slope(low, high):
        def error(low, high):
            grid, learned = scaled_grid(w, fmt, low, high)
            return jnp.sum((project(grid, w, learned) - w) ** 2)

        return jax.value_and_grad(error, argnums=(0, 1))(low, high)

    scale = qjax.fit(w, fmt).scales[0]
    one = jnp.full(scale.shape, 1.4)
    before, (low, high) = error_and_slope(one, one)
    assert bool(jnp.all(jnp.isfinite(low))) and bool(jnp.any(high != 0))
    step = jnp.sign(low) * 0.3, jnp.sign(high) * 0.3
    assert float(error_and_slope(one - step[0], one - step[1])[0]) < float(before)


def test_exactly_is_the_value_and_the_surrogates_slope():
    value, slope = jax.value_and_grad(lambda x: exactly(jnp.round(x), 3 * x))(jnp.float32(0.3))
    assert value == 0 and slope == 3


def test_adarounds_relaxation():
    v = jnp.linspace(-8, 8, 33)
    h = rectified(v)
    assert h[0] == 0 and h[-1] == 1 and abs(float(h[16]) - 0.5) < 1e-6
    decided, free = jnp.array([-30.0, 30.0]), jnp.array([0.0, 0.1])
    assert indecision(decided, jnp.float32(1), (20, 2), 0.2) == 0
    assert indecision(free, jnp.float32(1), (20, 2), 0.2) > 0.98
    assert indecision(free, jnp.float32(0.1), (20, 2), 0.2) == 0
    # eq. 24 in float64, at the end of the annealing
    want = np.mean(1 - np.abs(2 * np.asarray(rectified(v), np.float64) - 1) ** 2)
    np.testing.assert_allclose(indecision(v, jnp.float32(1), (20, 2), 0.2), want, rtol=1e-5)


def exhaustive(w, gram, fmt):
    """The least tr(E^T H E) over all choices of lower or upper neighbour, by trying them all (float64)."""
    grid = qjax.fit(w, fmt)
    low, high = (
        np.asarray(qjax.dequantize(qjax.encode(grid, w, r)), np.float64)[:, 0]
        for r in (qjax.rounding.floor, qjax.rounding.ceil)
    )
    h, w64 = np.asarray(gram, np.float64), np.asarray(w, np.float64)[:, 0]
    picks = (np.arange(2 ** len(low))[:, None] >> np.arange(len(low))) & 1
    errors = np.where(picks, high, low) - w64
    return np.min(np.einsum("pi,ij,pj->p", errors, h, errors))


@pytest.mark.parametrize("seed", [5, 15])
def test_adaround_finds_the_best_rounding_of_a_small_matrix(seed):
    w = draw(seed, 8, 1)
    x = draw(seed + 1, 64, 8) @ draw(seed + 2, 8, 8)
    fmt = "int3_channel_f32"
    rule = AdaRound(qjax.as_format(fmt))
    model = lambda p, x: x @ p["w"]  # noqa: E731
    learned, report = qjax.run(
        learn(rule, optimizer=optax.adam(3e-2), steps=400, scope="leaf"), model, {"w": w}, [x], schedule="whole"
    )
    gram = np.asarray(x, np.float64).T @ np.asarray(x, np.float64)

    def error(q):
        e = np.asarray(qjax.dequantize(q) - w, np.float64)
        return float(np.sum(e * (gram @ e)))

    best, nearest = exhaustive(w, gram, fmt), error(qjax.quantize(w, fmt))
    assert best < 0.7 * nearest
    assert error(learned["w"]) <= 1.0001 * best
    assert report.rows[0]["error_after"] < report.rows[0]["error_before"]


OPTIMIZERS = {
    "AdaRound": (AdaRound, optax.adam(2e-2)),
    "LoRARounding": (LoRARounding, optax.adam(2e-2)),
    "SignRound": (SignRound, sign_descent(60, {"shift": (-0.5, 0.5), "low": (0, 1), "high": (0, 1)})),
    "FlexRound": (FlexRound, optax.adam(5e-3)),
    "AdaQuant": (AdaQuant, optax.adam(2e-2)),
    "TesseraQ": (TesseraQ, progressive_rounding(2e-2, every=12, soft=(0.8, 0.5, 0.3, 0.1, 0.01))),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_block_learns(name):
    rule, optimizer = OPTIMIZERS[name]
    p, batches = toy.params(), toy.batches()
    t = learn(rule(qjax.as_format("int2_g8_f32")), optimizer=optimizer, steps=60)
    q, report = qjax.run(t, toy.model, p, batches)
    nearest, _ = qjax.run(qjax.rtn("int2_g8_f32"), toy.model, p, batches)
    fn = qjax.quantized(toy.model, strict=True)

    def error(q):
        return float(sum(jnp.sum((fn(q, x) - toy.model(p, x)) ** 2) for x in batches))

    assert error(q) < 0.8 * error(nearest)
    assert all(r["error_after"] < r["error_before"] for r in report.rows)
    assert {r["path"] for r in report.rows} == {f"layers/{i}/{n}" for i in range(toy.LAYERS) for n in ("up", "down")}


def test_roundings_are_decided_the_surest_first_and_for_good():
    """Against a plain account: at the start of a round all but the share of least |h - 1/2| go to 0 or 1."""
    optimizer = progressive_rounding(0.05, every=3, soft=(0.75, 0.25))
    params = {"v": draw(2, 40, 5), "scale": draw(3, 5)}
    state, step = optimizer.init(params), jax.jit(optimizer.update)
    for i in range(9):
        before = params
        with jax.numpy_dtype_promotion("standard"):  # as the engine calls it
            updates, state = step(jax.tree.map(jnp.ones_like, params), state, params)
        params = optax.apply_updates(params, updates)
        surety = np.abs(np.asarray(rectified(before["v"])) - 0.5)
        if i in (0, 3):
            chosen = surety > np.quantile(surety, (0.75, 0.25)[i // 3])
            ends = np.where(np.asarray(before["v"]) > 0, 30.0, -30.0)
            np.testing.assert_allclose(params["v"], np.where(chosen, ends, before["v"]), rtol=1e-6)
            np.testing.assert_array_equal(params["scale"], before["scale"])
        else:
            moved = np.asarray(params["v"] != before["v"])
            np.testing.assert_array_equal(moved, np.abs(before["v"]) < 30)
    assert np.mean(np.abs(params["v"]) == 30) == 0.75


def test_windows_overlap_and_the_last_one_decides():
    p, batches = toy.params(), toy.batches()
    rule = LoRARounding(qjax.as_format("int2_g8_f32"))
    distance = qjax.reconstruct.squared_distance_and_kl
    t = learn(rule, optimizer=optax.adam(2e-2), steps=30, scope="window", window=2, distance=distance)
    q, report = qjax.run(t, toy.model, p, batches)
    assert all(isinstance(leaf, qjax.QArray) for leaf in jax.tree.leaves(q, is_leaf=qjax.trace.paths.is_leaf)[1:])
    assert len(report.rows) == 8  # two windows of two blocks of two leaves


def test_the_engine_judges_and_refuses():
    def loss(fn, v, c, item, progress):
        return (v["a"] - item) ** 2 * (1 + 0 * progress)

    def judge(fn, v, c, item, progress):
        return jnp.abs(v["a"] + item)

    start = {"a": jnp.float32(1)}
    kwargs = {"optimizer": optax.sgd(0.1), "steps": 20, "key": jax.random.key(0)}
    found = minimize(loss, None, start, None, [jnp.float32(3)], **kwargs)
    assert found.loss < 0.01 and found.before == 4
    assert minimize(loss, None, start, None, [jnp.float32(3)], judge=judge, **kwargs).variables["a"] == 1
    with pytest.raises(ValueError, match="0 items"):
        minimize(loss, None, start, None, [], **kwargs)
    with pytest.raises(ValueError, match="only floating"):
        minimize(loss, None, {"a": jnp.int32(1)}, None, [jnp.float32(3)], **kwargs)


def test_a_quantized_leaf_is_refused():
    t = learn(AdaRound(qjax.as_format("int4_g8")), optimizer=optax.adam(1e-2), steps=1)
    with pytest.raises(ValueError, match="layers/0/up: already holds QArray"):
        qjax.run(qjax.chain(qjax.rtn("int8"), t), toy.model, toy.params(), toy.batches())


def test_a_cast_has_no_range_to_learn():
    cast = qjax.Format(qjax.formats.E4M3, scale=None)
    with pytest.raises(ValueError, match="has no scale"):
        SignRound(cast).init(normal(0, 8, 2), jax.random.key(0))
    w = normal(0, 8, 2)
    rule = AdaRound(cast)
    used = jax.jit(lambda w, key: rule.forward(w, rule.settle(rule.init(w, key))))(w, jax.random.key(0))
    np.testing.assert_array_equal(used, qjax.dequantize(qjax.quantize(w, cast)))
