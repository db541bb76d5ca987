"""Reconstruction weighted by what the loss, or the outputs, make of each number: against gradients taken by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import qjax
from qjax import recipes
from qjax.metrics import next_token_loss
from qjax.reconstruct import AdaQuant, AdaRound
from qjax.transforms import learn
from qjax.transforms.sensitivity import sensitivities
from tests.draw import normal
from tests.transforms import toy

FMT = "int2_g8_f32"
WIDTH, TOKENS = 8, 12


def linear(p, x):
    for layer in ("0", "1"):
        x = x @ p["layers"][layer]["w"]
    return x * p["gain"][None]


def diagonal():
    """Two layers; the second is diagonal, so that projecting on random signs gives its Jacobian's squares exactly."""
    layers = {"0": {"w": normal(0, WIDTH, WIDTH)}, "1": {"w": jnp.diag(normal(1, WIDTH))}}
    return {"layers": layers, "gain": jnp.linspace(0.5, 2.0, WIDTH)}, [normal(2 + i, TOKENS, WIDTH) for i in range(2)]


def by_hand(p, q, x):
    """What both layers put out, in float and rounded, float64."""
    float_, rounded = [np.asarray(x, np.float64)], [np.asarray(x, np.float64)]
    for layer in ("0", "1"):
        float_.append(float_[-1] @ np.asarray(p["layers"][layer]["w"], np.float64))
        rounded.append(rounded[-1] @ np.asarray(qjax.dense(q["layers"][layer]["w"]), np.float64))
    return float_[1:], rounded[1:]


def test_slopes_of_a_loss_and_of_outputs():
    p, (x, _) = diagonal()
    scale, gain = np.diag(np.asarray(p["layers"]["1"]["w"])), np.asarray(p["gain"])
    fns = [lambda w, x: (x[0] @ w, x[1]), lambda w, x: (x[0] @ w * p["gain"][None], x[1])]
    ws = [p["layers"][layer]["w"] for layer in ("0", "1")]
    item = ((x, jnp.arange(3)), None)  # an integer that is only handed on
    weight = np.asarray(normal(5, TOKENS, WIDTH))

    def loss(y, batch):
        del batch
        return jnp.sum(jnp.asarray(weight) * y[0])

    (((first, none), (last, _)),) = sensitivities(fns, ws, [0, 1], [item], loss, jax.random.key(0))
    np.testing.assert_allclose(first, (weight * gain * scale) ** 2, rtol=1e-5)
    np.testing.assert_allclose(last, weight**2, rtol=1e-5)
    assert none.shape == () and none == 0
    (((first, _), (last, _)),) = sensitivities(fns, ws, [0, 1], [item], None, jax.random.key(0))
    np.testing.assert_allclose(first, np.broadcast_to((gain * scale) ** 2, x.shape), rtol=1e-5)
    np.testing.assert_allclose(last, 1, rtol=1e-6)
    # A dense Jacobian's squares are met on average over the signs only.
    fns[1] = lambda w, x: (x[0] @ ws[0], x[1])
    (((dense, _),),) = sensitivities(fns, ws, [0], [item], None, jax.random.key(0))
    np.testing.assert_allclose(dense.mean(), np.sum(np.asarray(ws[0]) ** 2) / WIDTH, rtol=0.25)


def test_the_network_is_weighed_sample_by_sample():
    """EPTQ without a step: the error it starts from is that of all layers, each weighted by its largest slope."""
    p, batches = diagonal()
    q, report = qjax.run(recipes.eptq(FMT, steps=0), linear, p, batches)
    gain, scale = np.asarray(p["gain"]), np.diag(np.asarray(p["layers"]["1"]["w"]))
    weights = np.max((gain * scale) ** 2), np.max(gain**2)
    lost = size = 0.0
    for x in batches:
        for w, a, b in zip(weights, *by_hand(p, q, x), strict=True):
            lost, size = lost + w * np.mean((a - b) ** 2), size + w * np.mean(a**2)
    assert len(report.rows) == 2
    for row in report.rows:
        assert row["error_before"] == row["error_after"] == pytest.approx(np.sqrt(lost / size), rel=1e-4)


def test_a_block_is_weighed_by_the_squared_gradient_of_the_loss():
    p, batches = diagonal()

    def loss(y, batch):
        return jnp.mean(y**2) + 0 * jnp.sum(batch)

    q, report = qjax.run(recipes.brecq(FMT, steps=0, fisher=True), linear, p, batches, loss=loss)
    gain, scale = np.asarray(p["gain"]), np.diag(np.asarray(p["layers"]["1"]["w"]))
    for row, into in zip(report.rows, (scale * gain, gain), strict=True):
        layer = int(row["path"].split("/")[1])
        lost = size = 0.0
        for x in batches:
            (float_, rounded) = by_hand(p, q, x)
            w = (float_[1] * gain * into) ** 2
            a, b = float_[layer], rounded[layer]
            lost, size = lost + np.mean(w * (a - b) ** 2), size + np.mean(w * a**2)
        assert row["error_before"] == pytest.approx(np.sqrt(lost / size), rel=1e-4)


def one(p, x):
    return toy.block(p["layers"]["0"], x) * p["gain"][None]


def test_what_the_loss_reads_is_rounded_better():
    """Only one channel of the output counts: weighted by the loss, learning serves it, and else all of them alike."""

    def loss(y, batch):
        del batch
        return jnp.mean(y[:, 3])

    def lost(q, p, batches):
        return sum(float(jnp.mean(jnp.square(fn(q, x) - one(p, x))[:, 3])) for x in batches)

    options = {"optimizer": optax.adam(2e-2), "steps": 100}
    plain, weighted = (learn(AdaQuant(qjax.as_format(FMT)), **options, weighting=w) for w in (None, "fisher"))
    fn, total = jax.jit(qjax.quantized(one, strict=True)), np.zeros(2)
    for seed in (0, 2):
        p, batches = toy.params(seed), toy.batches(key=7 + seed)
        p = {**p, "layers": {"0": p["layers"]["0"]}}
        total += [lost(qjax.run(t, one, p, batches, loss=loss)[0], p, batches) for t in (weighted, plain)]
    assert total[0] < 0.7 * total[1]


def test_the_whole_network_learns_at_once():
    p, batches = toy.params(), toy.batches()
    rule = AdaQuant(qjax.as_format(FMT))
    t = learn(rule, optimizer=optax.adam(2e-2), steps=60, weighting="label_free", scope="window", window=None)
    q, report = qjax.run(t, toy.model, p, batches)
    assert {row["path"] for row in report.rows} == {
        f"layers/{i}/{n}" for i in range(toy.LAYERS) for n in ("up", "down")
    }
    assert len({row["error_after"] for row in report.rows}) == 1
    assert report.rows[0]["error_after"] < 0.85 * report.rows[0]["error_before"]
    leaves = jax.tree.leaves(q["layers"], is_leaf=qjax.trace.paths.is_leaf)
    assert all(isinstance(leaf, qjax.QArray) for leaf in leaves)


def test_next_token_loss_is_the_mean_surprise():
    logits, tokens = np.asarray(normal(0, 2, 5, 7)), np.array([[1, 2, 3, 4, 5], [0, 6, 0, 2, 1]])
    p = np.exp(logits.astype(np.float64))
    p /= p.sum(-1, keepdims=True)
    want = -np.mean([np.log(p[b, t, tokens[b, t + 1]]) for b in range(2) for t in range(4)])
    np.testing.assert_allclose(next_token_loss(jnp.asarray(logits), jnp.asarray(tokens)), want, rtol=1e-6)
    with pytest.raises(ValueError, match="do not fit"):
        next_token_loss(jnp.asarray(logits), jnp.asarray(tokens[:, 1:]))


def test_what_cannot_be_weighted_is_refused():
    rule, options = AdaRound(qjax.as_format(FMT)), {"optimizer": optax.adam(1e-2), "steps": 1}
    with pytest.raises(ValueError, match="neither 'fisher' nor 'label_free'"):
        learn(rule, **options, weighting="hessian")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="is of the squared distance"):
        learn(rule, **options, weighting="fisher", scope="leaf")
    with pytest.raises(ValueError, match="needs a loss"):
        qjax.run(recipes.brecq(FMT, steps=1, fisher=True), toy.model, toy.params(), toy.batches())
