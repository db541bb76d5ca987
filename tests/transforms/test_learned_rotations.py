"""SpinQuant and RPTQ: Cayley steps against the transform in closed form, clusters against another k-means."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from scipy.cluster import vq

import qjax
from qjax import recipes, transforms
from qjax.models import Architecture, Decoder
from qjax.operators import Diag, Permute, Quantize
from qjax.reconstruct import cayley_sgd
from qjax.solvers.channel_clusters import by_range
from tests import draw
from tests.transforms import toy

MODEL = Decoder(Architecture(vocab=40, width=16, layers=1, heads=4, kv_heads=2, head_dim=4, ffn=16))


def test_a_step_is_the_cayley_transform():
    x = np.linalg.qr(np.random.default_rng(0).normal(size=(2, 6, 6)))[0]
    g = np.random.default_rng(1).normal(size=(2, 6, 6))
    optimizer = cayley_sgd(0.05, iterations=40)
    given, slope = (jnp.asarray(a, jnp.float32) for a in (x, g))
    moved, _ = optimizer.update({"r": slope}, optimizer.init({"r": given}), {"r": given})
    for i in range(2):
        w = 0.5 * (x[i].T @ g[i] - g[i].T @ x[i])
        a = min(0.05, 1 / np.abs(w).sum(0).max())
        want = x[i] @ (np.eye(6) - a / 2 * w) @ np.linalg.inv(np.eye(6) + a / 2 * w)
        np.testing.assert_allclose(x[i] + moved["r"][i], want, atol=2e-6)
    with pytest.raises(ValueError, match="needs the parameters"):
        optimizer.update({"r": slope}, optimizer.init({"r": given}))


def test_descent_stays_on_the_manifold_and_arrives():
    """max tr(A R) over rotations has the polar factor of A^T as its maximum."""
    a = draw.normal(0, 5, 5)
    optimizer = cayley_sgd(optax.cosine_decay_schedule(1.5, 200))
    start = jnp.eye(5, dtype=jnp.float32).at[0, 0].set(-1.0)
    u, _, v = np.linalg.svd(np.asarray(a, np.float64).T)
    best = u @ v
    start = jnp.asarray(start if np.linalg.det(best) < 0 else np.eye(5), jnp.float32)

    @jax.jit
    def descend(r):
        def step(_, carry):
            r, state = carry
            moved, state = optimizer.update(jax.grad(lambda r: -jnp.trace(a @ r))(r), state, r)
            return r + moved, state

        return jax.lax.fori_loop(0, 200, step, (r, optimizer.init(r)))[0]

    with jax.numpy_dtype_promotion("standard"):  # optax's own schedule
        found = descend(start)
    np.testing.assert_allclose(found @ found.T, np.eye(5), atol=2e-6)
    np.testing.assert_allclose(found, best, atol=2e-2)


def test_spinquant_keeps_the_network_and_lowers_the_loss_of_rounded_inputs():
    p = draw.parameters(MODEL.arch)
    p = {**p, "embed": p["embed"].at[:, 5].multiply(20.0)}
    tokens = [draw.integers(seed, 0, 40, 2, 9) for seed in (1, 2)]
    recipe = recipes.spinquant(method="rtn", cache=None, steps=8)
    q, report = qjax.run(recipe[:1], MODEL, p, tokens)
    a, b = MODEL(p, tokens[0]), jax.jit(qjax.tapped(MODEL))(q, tokens[0])
    assert float(jnp.max(jnp.linalg.norm(a - b, axis=-1) / jnp.linalg.norm(a, axis=-1))) <= 5e-5
    assert set(q.taps) == {"*/attn/query", "*/attn/key"}
    row = next(row for row in report.rows if row["path"] == "layers/0/ffn/down")
    assert row["error_after"] < 0.95 * row["error_before"]


def test_flatquant_keeps_each_block_and_lowers_its_error():
    p, batches = toy.params(), [b.at[:, 3].multiply(30.0) for b in toy.batches()]
    recipe = recipes.flatquant("int4_f32", "int4_f32", cache=None, steps=30)
    q, report = qjax.run(recipe[:1], toy.model, p, batches)
    fn = jax.jit(qjax.quantized(toy.model, strict=True))
    for x in batches:
        want = toy.model(p, x)
        assert float(jnp.linalg.norm(fn(q, x) - want)) <= 5e-5 * float(jnp.linalg.norm(want))
    op = q["layers"]["1"]["down"]
    assert isinstance(op.T, Diag) and [f.shape for f in op.op.T.factors] == [(4, 4), (8, 8)]
    kept = [row["error_after"] / row["error_before"] for row in report.rows]
    assert np.mean(kept) < 0.9, kept


def test_clusters_are_those_of_another_k_means():
    rng = np.random.default_rng(0)
    size = np.concatenate([rng.uniform(0.5, 1.5, 40), [30.0, 31.0, 80.0]])
    low, high = (jnp.asarray(v, jnp.float32) for v in (-size * rng.uniform(0.5, 1, 43), size))
    points = np.stack([high, low], -1).astype(np.float64)

    def spread(label) -> float:
        return sum(np.sum((points[label == c] - points[label == c].mean(0)) ** 2) for c in set(label.tolist()))

    found = np.asarray(by_range(low, high, count=5))
    assert len(set(found.tolist())) == 5 and len(set(found[40:].tolist()) & set(found[:40].tolist())) == 0
    best = min(spread(vq.kmeans2(points, 5, minit="++", seed=seed)[1]) for seed in range(10))
    assert spread(found) <= 1.1 * best
    started = [spread(np.asarray(by_range(low, high, count=5, iterations=n))) for n in (0, 50)]
    assert started[1] <= started[0]


def linear(p, x):
    return x @ p["w"]


def test_rptq_gives_each_cluster_a_static_scale():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(40, 12)).astype(np.float32)
    x[:, [2, 7]] = 30 * x[:, [2, 7]] + 40
    p = {"w": draw.normal(0, 12, 4)}
    q, _ = qjax.run(recipes.rptq("int8_f32", "int4_input_affine_f32", 3), linear, p, [jnp.asarray(x)], schedule="whole")
    op = q["w"]
    assert isinstance(op.T, Permute) and isinstance(op.op.T, Quantize)
    order = np.asarray(op.T.order)
    label = np.asarray(by_range(jnp.asarray(x.min(0)), jnp.asarray(x.max(0)), count=3))
    assert np.count_nonzero(np.diff(label[order])) == 2  # side by side
    rounded = np.zeros_like(x, np.float64)
    for c in range(3):
        low, high = min(x[:, label == c].min(), 0), max(x[:, label == c].max(), 0)
        step = (high - low) / 15
        zero = np.rint(-low / step)
        rounded[:, label == c] = (np.clip(np.rint(x[:, label == c] / step) + zero, 0, 15) - zero) * step
    want = rounded[:, order] @ np.asarray(qjax.dense(op.op.op), np.float64)
    got = jax.jit(qjax.quantized(linear, strict=True))(q, jnp.asarray(x))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-3)
    one = qjax.chain(qjax.gptq("int8_f32"), qjax.act_quantize("int4_tensor_affine", static=True))
    other, _ = qjax.run(one, linear, p, [jnp.asarray(x)], schedule="whole")
    errors = [np.linalg.norm(qjax.quantized(linear)(leaves, jnp.asarray(x)) - x @ p["w"]) for leaves in (q, other)]
    assert errors[0] < 0.8 * errors[1]


BAD = {
    "has no scale for each channel": lambda: transforms.cluster_quantize("int4"),
    "0 clusters; give at least 1": lambda: transforms.reorder_channels(0),
    "20 clusters of its 12 inputs": lambda: qjax.run(
        transforms.reorder_channels(20), linear, {"w": jnp.ones((12, 4))}, [jnp.ones((3, 12))], schedule="whole"
    ),
    "-2 steps at rate": lambda: transforms.learn_affine(steps=-2),
    "-1 steps at rate": lambda: transforms.learn_rotation(steps=-1),
    "which leaves share a stream": lambda: qjax.run(
        transforms.learn_rotation(), linear, {"w": jnp.ones((12, 4))}, [jnp.ones((3, 12))], schedule="whole"
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
