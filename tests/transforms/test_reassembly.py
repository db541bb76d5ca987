"""QLLM: channels taken apart and merged as the paper says, and a low-rank update that is rounded with the weight."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import qjax
from qjax import recipes, transforms
from qjax.operators import Pre, Quantize, Reassemble
from qjax.reconstruct import LowRankUpdate
from qjax.solvers import channel_reassembly as solver
from tests import draw
from tests.transforms import toy

K, N, T = 40, 6, 48
INPUTS, WEIGHTS = "int4_narrow_f32", "int6_channel_narrow_f32"


def outlying(seed=0, channels=(3, 10)):
    """Two channels of outliers, and from the twelfth on pairs that say nearly the same."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(T, K))
    x[:, 13::2] = x[:, 12::2] + 0.1 * x[:, 13::2]
    x[:, list(channels)] *= 20
    return x, rng.normal(size=(K, N))


def reassembled(x, w, t):
    """Both sides of the layer under a threshold, channel by channel."""
    copies = np.maximum(np.ceil(np.abs(x).max(0) / t), 1).astype(int)
    added = copies.sum() - K

    def lost(i, j):  # what merging them moves the output by
        merged = (x[:, [i]] + x[:, [j]]) / 2 * (w[i] + w[j])
        return np.sum((merged - x[:, [i]] * w[i] - x[:, [j]] * w[j]) ** 2)

    alone = [i for i in range(K) if copies[i] == 1]
    proposals = []
    for i in alone:
        partners = [j for j in alone if j % 2]
        if i % 2 == 0 and partners:
            j = min(partners, key=lambda j: lost(i, j))
            proposals.append((lost(i, j), i, j))
    assert len(proposals) >= added
    groups = {i: [i] for i in range(K)}
    for _, i, j in sorted(proposals)[:added]:
        groups[j] += groups.pop(i)
    xs, ws = [], []
    for i, members in sorted(groups.items()):
        xs += [x[:, members].mean(1) / copies[i]] * copies[i]
        ws += [w[members].sum(0)] * copies[i]
    return np.stack(xs, 1), np.stack(ws)


def rounded(v, axis, most):
    step = np.abs(v).max(axis, keepdims=True) / most
    return np.rint(v / step) * step


def test_the_search_is_the_papers():
    x, w = outlying()
    size = np.abs(x).max(0)
    found = solver.search(
        [jnp.asarray(w[:, :2], jnp.float32), jnp.asarray(w[:, 2:], jnp.float32)],
        *(jnp.asarray(a, jnp.float32) for a in (x, np.ones(T), size)),
        weights=qjax.as_format(WEIGHTS), inputs=qjax.as_format(INPUTS), points=12, ratio=0.4,
    )  # fmt: skip
    fine = np.geomspace(size.max(), 0.1, 40000)
    least = fine[np.array([np.maximum(np.ceil(size / t), 1).sum() - K <= int(0.4 * K) for t in fine])].min()
    grid = np.geomspace(size.max(), least, 12)
    errors = []
    for t in grid[:-1]:  # the last one stands on an edge, which a rounded quotient moves
        xs, ws = reassembled(x, w, t)
        errors.append(np.sum((rounded(xs, 1, 7) @ rounded(ws, 0, 31) - x @ w) ** 2))
    np.testing.assert_allclose(found.errors[:-1], errors, rtol=1e-3)
    best = int(np.argmin(found.errors))
    np.testing.assert_allclose(found.threshold, grid[best], rtol=1e-3)
    assert 0 < int(found.added) <= int(0.4 * K) and min(errors) < 0.4 * errors[0]


def test_a_reassembly_keeps_the_width_and_errs_by_its_merged_pairs():
    x, w = (jnp.asarray(a, jnp.float32) for a in outlying())
    size = jnp.max(jnp.abs(x), axis=0)
    costs = solver.losses(x, w)
    m, added, possible = solver.reassembly(size, costs, 0.4 * jnp.max(size))
    y, behind = m.apply(x), solver.reassembled(m, w)
    assert y.shape == x.shape and behind.shape == w.shape and int(added) > 1 and bool(possible)
    assert float(jnp.max(jnp.abs(y))) <= 0.4 * float(jnp.max(size)) * (1 + 1e-6)
    moved = np.zeros((T, N))
    for i, j in [(i, j) for i, j in enumerate(np.asarray(m.taken)) if i != j]:
        assert i % 2 == 0 and j % 2 == 1
        moved += np.asarray(x[:, i] - x[:, j])[:, None] * np.asarray(w[i] - w[j]) / 2
    assert np.unique(np.asarray(m.taken), return_counts=True)[1].max() == 2  # the loss of larger groups is another
    np.testing.assert_allclose(np.abs(y @ behind - x @ w), np.abs(moved), atol=1e-3)
    # Nothing taken apart, nothing merged.
    none, added, _ = solver.reassembly(size, costs, jnp.max(size))
    assert int(added) == 0 and bool((none.apply(x) == x).all())
    # Every channel an outlier: none is left to be merged.
    assert not bool(solver.reassembly(size, costs, 0.01 * jnp.min(size))[2])


def linear(p, x):
    return x @ p["w"]


def subject():
    x, w = outlying()
    return {"w": jnp.asarray(w, jnp.float32)}, jnp.asarray(x, jnp.float32)


def error(q, p, x, fn=linear) -> float:
    return float(jnp.linalg.norm(qjax.quantized(fn, strict=True)(q, x) - fn(p, x)))


def test_qllm_errs_less_with_each_of_its_halves():
    p, x = subject()
    kinds = {"plain": (0.0, 0), "reassembled": (0.4, 0), "both": (0.4, 60)}
    found, errors, rows = {}, {}, []
    for name, (ratio, steps) in kinds.items():
        recipe = recipes.qllm(WEIGHTS, INPUTS, ratio=ratio, points=16, steps=steps, rate=5e-2)
        found[name], report = qjax.run(recipe, linear, p, [x], schedule="whole")
        errors[name] = error(found[name], p, x)
        rows = report.rows
    assert errors["reassembled"] < 0.6 * errors["plain"]
    assert errors["both"] < 0.9 * errors["reassembled"]
    assert rows[-1]["error_after"] < rows[-1]["error_before"]
    plain, both = found["plain"]["w"], found["both"]["w"]
    assert isinstance(plain.T, Quantize)  # of no added channels nothing stands in front
    assert isinstance(both, Pre) and isinstance(both.T, Reassemble) and isinstance(both.op.T, Quantize)
    assert isinstance(both.op.op, qjax.QArray) and both.op.op.shape == (K, N)


def test_a_gram_matrix_follows_and_gptq_stands_behind():
    p, x = subject()
    first = transforms.reassemble_channels(WEIGHTS, INPUTS, points=16, ratio=0.4)
    q, _ = qjax.run(qjax.chain(first, qjax.gptq(WEIGHTS)), linear, p, [x], schedule="whole")
    nearest, _ = qjax.run(qjax.chain(first, qjax.rtn(WEIGHTS)), linear, p, [x], schedule="whole")
    assert error(q, p, x) < error(nearest, p, x)


def experts(p, x):
    return jnp.einsum("etk,ekn->etn", x, p["w"])


def test_experts_have_reassemblies_of_their_own():
    p = {"w": draw.normal(0, 2, K, N)}
    x = jnp.stack([jnp.asarray(outlying(0, c)[0], jnp.float32) for c in ((3, 10), (5, 8))])
    errors = {}
    for ratio in (0.4, 0.0):
        recipe = recipes.qllm("int8_affine", INPUTS, ratio=ratio, points=16, steps=0)
        q, _ = qjax.run(recipe, experts, p, [x], schedule="whole")
        errors[ratio] = error(q, p, x, experts)
    assert errors[0.4] < 0.8 * errors[0.0]


def in_windows():
    learned = transforms.learn(
        LowRankUpdate(qjax.as_format(WEIGHTS)), optimizer=optax.adam(1e-2), steps=1, scope="window"
    )
    first = transforms.reassemble_channels(WEIGHTS, INPUTS, points=8, ratio=0.4)
    batches = [x.at[:, 3].multiply(20.0) for x in toy.batches()]
    qjax.run(qjax.chain(first, learned), toy.model, toy.params(), batches)


BAD = {
    "0 points": lambda: transforms.reassemble_channels("int4", "int4", points=0),
    "0.7 of the channels": lambda: transforms.reassemble_channels("int4", "int4", ratio=0.7),
    "layers/1/up: a map that is no equivalence": in_windows,
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
