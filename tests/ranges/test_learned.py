"""Learned ranges: gradients equal to the published formulas, element by element, and to differences where there are."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax import ranges
from qjax.formats import E2M1, Int

X = np.random.default_rng(0).normal(0, 2, (40, 6)).astype(np.float32)
G = np.random.default_rng(1).normal(size=(40, 6)).astype(np.float32)


def pull(fn, *args):
    """The value at X and what `fn` passes back of G, in one program."""

    def both(x, *args):
        y, back = jax.vjp(fn, x, *args)
        return y, *back(jnp.asarray(G))

    return [np.asarray(v) for v in jax.jit(both)(jnp.asarray(X), *args)]


@pytest.mark.parametrize("e", [Int(3), Int(4, signed=False), E2M1], ids=lambda e: e.name)
def test_lsq_gradients_are_the_formula(e):
    scale = np.float32([[0.5, 0.3, 1.0, 0.7, 0.2, 0.9]])
    y, to_x, to_scale = pull(lambda x, s: ranges.lsq(x, s, e), jnp.asarray(scale))
    v = X / scale
    rounded = np.asarray(e.round(jnp.asarray(v)))
    np.testing.assert_array_equal(y, scale * rounded)
    inside = (v > e.min) & (v < e.max)
    assert 0.2 < inside.mean() < 0.95
    np.testing.assert_array_equal(to_x, np.where(inside, G, 0))
    slope = np.where(inside, rounded - v, np.where(v <= e.min, e.min, e.max))
    want = (G * slope).sum(0, keepdims=True) / np.sqrt(40 * e.max)  # N: the values that share a step
    np.testing.assert_allclose(to_scale, want, rtol=1e-5, atol=1e-6)


def test_lsq_beyond_the_range_is_the_derivative():
    """Where everything saturates the output is scale * Q and differences see the published gradient."""
    x, h = jnp.array([9.0, -9.0, 7.0]), 1e-2

    def loss(s):
        return jnp.sum(ranges.lsq(x, s, Int(3), count=1) * jnp.array([1.0, 2.0, 3.0]))

    s = jnp.array([0.5])
    difference = (loss(s + h) - loss(s - h)) / (2 * h)
    np.testing.assert_allclose(jax.grad(loss)(s)[0] * np.sqrt(3), difference, rtol=1e-4)  # sqrt(N Q_P), N = 1
    assert np.isnan(ranges.lsq(jnp.array([jnp.nan]), s, Int(3))[0])


def test_lsq_start_and_shapes():
    e = Int(4)
    np.testing.assert_allclose(ranges.lsq_init(jnp.asarray(X), e)[0, 0], 2 * np.abs(X).mean() / np.sqrt(7), rtol=1e-6)
    np.testing.assert_allclose(
        ranges.lsq_init(jnp.asarray(X), e, (0,))[0], 2 * np.abs(X).mean(0) / np.sqrt(7), rtol=1e-6
    )
    assert ranges.lsq_init(jnp.zeros((2, 2)), e).tolist() == [[1.0]]
    for bad in (jnp.ones(6), jnp.ones((3, 1))):
        with pytest.raises(ValueError, match="do not fit"):
            ranges.lsq(jnp.asarray(X), bad, e)


@pytest.mark.parametrize("alpha", [np.float32(2.0), np.float32([[0.5, 1.0, 2.0, 3.0, 1.5, 9.0]])], ids=["one", "each"])
def test_pact_gradients_are_the_formula(alpha):
    y, to_x, to_alpha = pull(lambda x, a: ranges.pact(x, a, 2), jnp.asarray(alpha))
    clipped = np.clip(X, 0, alpha)
    np.testing.assert_allclose(y, np.rint(clipped * (3 / alpha)) * (alpha / 3), rtol=1e-6)
    np.testing.assert_array_equal(to_x, np.where((X >= 0) & (alpha > X), G, 0))
    over = np.where(alpha <= X, G, 0)
    np.testing.assert_allclose(to_alpha, over.sum() if alpha.ndim == 0 else over.sum(0, keepdims=True), rtol=1e-5)


def test_pact_beyond_the_clip_is_the_derivative():
    x, h = jnp.array([9.0, 7.0, -3.0]), 1e-2
    loss = lambda a: ranges.pact(x, a, 4).sum()  # noqa: E731
    assert abs((loss(jnp.float32(2 + h)) - loss(jnp.float32(2 - h))) / (2 * h) - 2) < 1e-3
    assert float(jax.grad(loss)(jnp.float32(2.0))) == 2
    with pytest.raises(ValueError, match="bits"):
        ranges.pact(x, jnp.float32(1.0), 0)


def test_learnable_clipping_is_omniquants_quantizer_and_gradient():
    """Gradients against differences of the same formula with every rounding held at its offset, in float64."""
    e, gamma, beta = Int(3, signed=False), np.full((1, 6), 1.5), np.full((1, 6), 0.5)

    def formula(w, gamma, beta, held=None):
        low, high = w.min(0, keepdims=True) / (1 + np.exp(-beta)), w.max(0, keepdims=True) / (1 + np.exp(-gamma))
        h = (high - low) / 7
        if held is None:
            code = np.rint(w / h) - np.rint(low / h)
            held = np.rint(low / h) - low / h, np.rint(w / h) - w / h, (code >= 0) & (code <= 7), np.clip(code, 0, 7)
        zero = -(low / h + held[0])
        return (np.where(held[2], w / h + held[1] + zero, held[3]) - zero) * h, held

    w = X.astype(np.float64)
    y, to_w, to_gamma, to_beta = pull(
        lambda w, gamma, beta: ranges.learnable_clipping(w, gamma, beta, e, (0,)),
        jnp.asarray(gamma, jnp.float32),
        jnp.asarray(beta, jnp.float32),
    )
    value, held = formula(w, gamma, beta)
    np.testing.assert_allclose(y, value, rtol=1e-5, atol=1e-6)

    def difference(which, at):
        step = np.zeros((40, 6) if which == 0 else (1, 6))
        step[at] = 1e-6
        above, below = ([v + s * step * (i == which) for i, v in enumerate((w, gamma, beta))] for s in (1, -1))
        return np.sum(G * (formula(*above, held)[0] - formula(*below, held)[0])) / 2e-6

    for j in range(6):
        np.testing.assert_allclose(to_gamma[0, j], difference(1, (0, j)), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(to_beta[0, j], difference(2, (0, j)), rtol=1e-3, atol=1e-4)
        inner = np.argsort(X[:, j])[[5, 20, 33]]  # neither least nor largest
        for i in inner:
            np.testing.assert_allclose(to_w[i, j], difference(0, (i, j)), rtol=1e-3, atol=1e-4)
    with pytest.raises(ValueError, match="unsigned"):
        ranges.learnable_clipping(jnp.asarray(X), jnp.ones((1, 6)), jnp.ones((1, 6)), Int(3), (0,))


def test_learnable_clipping_learns_a_clip():
    """Gradient descent on the squared error of heavy-tailed weights beats the whole range (catalogue B6)."""
    w = jnp.asarray(np.random.default_rng(3).standard_t(3, (256, 4)).astype(np.float32))
    e = Int(3, signed=False)

    def loss(clips):
        return jnp.mean((ranges.learnable_clipping(w, *clips, e, (0,)) - w) ** 2)

    start = (jnp.full((1, 4), 4.0), jnp.full((1, 4), 4.0))

    def step(i, clips):
        return jax.tree.map(lambda c, g: c - 0.05 * jnp.sign(g), clips, jax.grad(loss)(clips))

    clips = jax.jit(lambda clips: jax.lax.fori_loop(0, 120, step, clips))(start)
    assert float(loss(clips)) < 0.7 * float(loss(start))


def test_n2uq_is_the_staircase_with_the_gradient_of_its_line():
    start, widths, step = 0.25, np.array([0.5, 1.0, 0.25, 0.75, 1.5]), 0.4
    x = X.astype(np.float64)

    def line(x, start, widths, step):
        y, begin = np.zeros_like(x), start
        for i, width in enumerate(widths):
            y = np.where(x > begin, step * (i + (x - begin) / width), y)
            begin += width
        return np.where(x > begin, step * len(widths), y)

    y, to_x, to_start, to_widths, to_step = pull(
        ranges.n2uq, jnp.float32(start), jnp.asarray(widths, jnp.float32), jnp.float32(step)
    )
    ends = start + np.cumsum(widths)
    count = np.sum(x[..., None] > ends - widths / 2, axis=-1)
    np.testing.assert_allclose(y, step * count, rtol=1e-6)

    def difference(**moved):
        now = dict(x=x, start=start, widths=widths, step=step)
        sides = [line(**{**now, **{k: now[k] + s * v for k, v in moved.items()}}) for s in (1, -1)]
        return np.sum(G * (sides[0] - sides[1])) / 2e-7

    np.testing.assert_allclose(to_start, difference(start=1e-7), rtol=1e-4)
    for i in range(5):
        np.testing.assert_allclose(to_widths[i], difference(widths=1e-7 * np.eye(5)[i]), rtol=1e-4)
    slope = (line(x + 1e-7, start, widths, step) - line(x - 1e-7, start, widths, step)) / 2e-7
    np.testing.assert_allclose(to_x, G * slope, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(to_step, np.sum(G * count), rtol=1e-4)  # a factor, of the staircase itself
    at_zero = jax.grad(lambda x: ranges.n2uq(x, jnp.float32(0.0), jnp.ones(3), jnp.float32(1.0)).sum())(jnp.zeros(2))
    assert at_zero.tolist() == [0.0, 0.0]  # rectified zeros have no slope


@pytest.mark.parametrize("tail", ["relu", "clipped", "log"])
def test_half_wave_gradients_are_the_formula(tail):
    e, scale = Int(2, signed=False), np.float32([[0.5388]])
    y, to_x, _ = pull(lambda x, s: ranges.half_wave_quantize(x, s, e, tail), jnp.asarray(scale))
    levels = np.clip(np.rint(X / scale), 1, 3)  # no positive value becomes zero
    np.testing.assert_array_equal(y, np.where(X > 0, scale * levels, 0))
    top = 3 * scale
    beyond = {"relu": 1.0, "clipped": 0.0, "log": 1 / np.maximum(X - (top - 1), 1e-9)}[tail]
    np.testing.assert_allclose(to_x, G * np.where(X <= 0, 0, np.where(top >= X, 1, beyond)), rtol=1e-5)
    with pytest.raises(ValueError, match="tail"):
        ranges.half_wave_quantize(jnp.asarray(X), jnp.ones((1, 1)), e, "tall")


def test_branches_are_pact_of_the_chosen_clip_under_their_own_decay():
    """BASQ: the branch's value and gradients are PACT's, other branches stand still; Adam's L2 adds decay * clip."""
    clips, decays = np.float32([1.0, 2.5, 4.0]), np.float32([0.5, 0.1, 0.02])
    y, to_x, to_clips = pull(lambda x, c: ranges.branch_pact(x, c, jnp.int32(1), 3), jnp.asarray(clips))
    step = np.float32(2.5) / np.float32(7)
    np.testing.assert_array_equal(y, np.round(np.clip(X, 0, np.float32(2.5)) / step) * step)
    np.testing.assert_array_equal(to_x, np.where((X >= 0) & (X < 2.5), G, 0))
    np.testing.assert_allclose(to_clips, [0, G[X >= 2.5].sum(), 0], rtol=1e-5)
    np.testing.assert_allclose(jax.grad(ranges.clip_decay)(jnp.asarray(clips), jnp.asarray(decays)), decays * clips)
