"""Every statistic is a monoid over tokens: one table of laws, and each value against plain numpy."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax import statistics as st

ALL = [
    st.Gram(),
    st.AbsMax(),
    st.Min(),
    st.Max(),
    st.Mean(),
    st.Mean(absolute=True),
    st.Histogram(st.Even(8)),
    st.Histogram(st.Octaves(6, 2), by_channel=True),
    st.Reservoir(size=8),
    st.Count(),
]
EXACT = {"absmax", "min", "max", "histogram", "log_histogram", "reservoir", "count"}
X = np.random.default_rng(0).normal(size=(24, 6)).astype(np.float32)
W = np.random.default_rng(1).integers(0, 2, 24).astype(np.float32)
each = pytest.mark.parametrize("s", ALL, ids=lambda s: s.name)


@functools.cache
class Jitted:
    """A statistic whose update and merge are compiled (eager sorting and scattering compile op by op)."""

    def __init__(self, s):
        self.init, self.result, self.name = s.init, s.result, s.name
        self.update, self.merge = jax.jit(s.update), jax.jit(s.merge)


def same(s, a, b):
    for u, v in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        assert u.dtype == v.dtype and u.shape == v.shape
        if s.name in EXACT:
            np.testing.assert_array_equal(u, v)
        else:
            np.testing.assert_allclose(u, v, rtol=1e-5, atol=1e-5)


@each
def test_laws(s):
    s = Jitted(s)
    zero = s.init(6)
    a, b, c = (s.update(zero, x) for x in (X[:8], X[8:16], X[16:]))
    whole = s.update(zero, X)
    same(s, s.merge(zero, a), a)
    same(s, s.merge(a, zero), a)
    same(s, s.merge(a, b), s.merge(b, a))
    same(s, s.merge(s.merge(a, b), c), s.merge(a, s.merge(b, c)))
    same(s, s.merge(s.merge(a, b), c), whole)
    same(s, s.update(s.update(zero, X[:8]), X[8:13]), s.merge(a, s.update(zero, X[8:13])))
    same(s, s.update(s.update(s.update(zero, X[:8]), X[8:16]), X[16:]), whole)


@each
def test_order_of_tokens_and_loops(s):
    s = Jitted(s)
    whole = s.update(s.init(6), X)
    same(s, s.update(s.init(6), X[::-1]), whole)

    def step(value, x):
        return s.update(value, x), None

    same(s, jax.lax.scan(step, s.init(6), X.reshape(4, 6, 6))[0], whole)


@each
def test_weight_zero_hides_a_token_even_if_it_is_nan(s):
    s = Jitted(s)
    dirty = np.where((W > 0)[:, None], X, np.float32(np.nan))
    same(s, s.update(s.init(6), dirty, W), s.update(s.init(6), X[W > 0]))


@each
def test_batch_axes_are_a_loop(s):
    s = Jitted(s)
    x = X.reshape(2, 2, 6, 6)
    w = W.reshape(2, 2, 6)
    for weights in (None, w):
        got = s.update(s.init(6, (2, 2)), x, weights)
        for i, j in np.ndindex(2, 2):
            one = s.update(s.init(6), x[i, j], None if weights is None else weights[i, j])
            same(s, jax.tree.map(lambda a, i=i, j=j: np.asarray(a)[i, j], got), one)
    same(s, s.merge(got, s.init(6, (2, 2))), got)


@each
def test_hashable_and_half_precision(s):
    assert hash(s) == hash(type(s)(**vars(s))) and isinstance(s, st.Statistic)
    s = Jitted(s)
    half = jnp.asarray(X).astype(jnp.bfloat16)
    same(s, s.update(s.init(6), half), s.update(s.init(6), half.astype(jnp.float32)))


def test_values_against_numpy():
    x, w = np.asarray(X, np.float64), np.asarray(W, np.float64)
    value = {s.name: s.result(Jitted(s).update(s.init(6), X, W)) for s in ALL}
    kept = x[w > 0]
    np.testing.assert_allclose(value["gram"], kept.T @ kept, rtol=1e-5)
    np.testing.assert_array_equal(value["absmax"], np.abs(kept).max(0).astype(np.float32))
    np.testing.assert_array_equal(value["max"], kept.max(0).astype(np.float32))
    np.testing.assert_array_equal(value["min"], kept.min(0).astype(np.float32))
    np.testing.assert_allclose(value["mean"], kept.mean(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(value["mean_abs"], np.abs(kept).mean(0), rtol=1e-5)
    assert value["count"] == len(kept)
    counts = value["histogram"]
    top = 2.0 ** int(counts.exponent)
    assert top / 2 <= np.abs(kept).max() < top
    np.testing.assert_array_equal(counts.counts, np.histogram(kept, 32, (-top, top))[0])


def test_real_weights_scale_sums():
    w = jnp.linspace(0.5, 2.0, 24, dtype=jnp.float32)
    x, v = np.asarray(X, np.float64), np.asarray(w, np.float64)
    np.testing.assert_allclose(
        Jitted(ALL[0]).update(ALL[0].init(6), X, w), (x * v[:, None]).T @ x, rtol=1e-5, atol=1e-5
    )
    mean = st.Mean()
    np.testing.assert_allclose(mean.result(mean.update(mean.init(6), X, w)), v @ x / v.sum(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("features", [512, 1100])
def test_block_triangle_is_symmetric_and_right(features):
    x = np.random.default_rng(2).normal(size=(2, 9, features)).astype(np.float32)
    w = np.array([[1, 0, 1, 1, 2, 1, 1, 1, 0.5]] * 2, np.float32)
    got = np.asarray(st.gram(jnp.asarray(x), jnp.asarray(w)))
    want = np.einsum("bti,bt,btj->bij", x.astype(np.float64), w, x)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)
    # Only the diagonal blocks are computed from both sides; everything else is mirrored.
    np.testing.assert_allclose(got, got.swapaxes(1, 2), rtol=1e-5, atol=1e-5)


def test_cross_gram_pairs_two_streams():
    s, y = Jitted(st.CrossGram()), X * 2 + 1
    np.testing.assert_allclose(s.update(s.init(6), (X, y), W), (X * W[:, None]).T @ y, rtol=1e-4, atol=1e-4)
    a, b = s.update(s.init(6), (X[:9], y[:9])), s.update(s.init(6), (X[9:], y[9:]))
    np.testing.assert_allclose(s.merge(a, b), s.update(s.init(6), (X, y)), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="two streams"):
        s.update(s.init(6), X)  # pyright: ignore[reportArgumentType]


def test_reservoir_holds_seen_distinct_rows_uniformly():
    x = jnp.asarray(np.random.default_rng(3).normal(size=(200, 3)).astype(np.float32)).astype(jnp.bfloat16)
    twice = jnp.concatenate([x, x, jnp.zeros((300, 3), jnp.bfloat16), -jnp.zeros((2, 3), jnp.bfloat16)])
    hits = np.zeros(201)
    known = {
        tuple(r): i for i, r in enumerate(np.concatenate([np.asarray(x, np.float32), np.zeros((1, 3), np.float32)]))
    }
    for seed in range(4):
        s = st.Reservoir(size=50, seed=seed)
        value = jax.jit(s.update)(s.init(3), twice)
        assert bool(value.filled.all())
        drawn = [known[tuple(r)] for r in np.asarray(value.rows)]
        assert len(set(drawn)) == 50
        hits[drawn] += 1
    # 4 draws of 50 from 201: about one a row; (3/4)^4 of the rows, 64, are never drawn, with a deviation of 6.
    assert 40 < (hits == 0).sum() < 88
    s = st.Reservoir(size=300)
    assert int(s.update(s.init(3), twice).filled.sum()) == 201


def test_histograms_grow_without_a_first_pass():
    """Entries of any size in any order: the counts of the final grid, by numpy from all of them."""
    rng = np.random.default_rng(4)
    x = (rng.choice([-1, 1], (63, 4)) * np.exp2(rng.uniform(-20, 20, (63, 4)))).astype(np.float32)
    x[0], x[1], x[2] = [0.0, -0.0, 3e38, -3e38], [1e-30, 1.5, 4.0, -4.0], [np.inf, np.nan, 2.0**-126, 1.0]
    even, log = map(Jitted, (st.Histogram(st.Even(16)), st.Histogram(st.Octaves(150, 3), by_channel=True)))
    for rows in (slice(60), slice(3, 63), slice(4, 5)):
        size = np.where(np.isfinite(x[rows]), np.abs(x[rows]), 0)
        exponent = int(np.frexp(size.max())[1])
        for s in (even, log):
            parts = [s.update(s.init(4), part) for part in np.split(x[rows], 3 if len(x[rows]) > 3 else 1)]
            value = parts[0]
            for part in parts[1:]:
                value = s.merge(part, value)
            assert int(value.exponent) == exponent
            same(s, value, s.update(s.init(4), x[rows]))
            assert float(value.counts.sum()) == np.isfinite(x[rows]).sum()
        place = np.floor(np.ldexp(size.astype(np.float64), -exponent) * 32).astype(int)
        index = np.where(x[rows] < 0, 31 - place, 32 + place)[np.isfinite(x[rows])]
        got = even.update(even.init(4), x[rows])
        np.testing.assert_array_equal(got.counts, np.bincount(index, minlength=64))


def test_points_are_as_near_as_their_bins():
    x = np.random.default_rng(5).standard_t(2, (3000, 2)).astype(np.float32) * [[1.0, 30.0]]
    x = x.astype(np.float32)
    log = st.Histogram(st.Octaves(), by_channel=True)
    points = log.points(jax.jit(log.update)(log.init(2), x))
    for i in range(2):
        values, counts = np.asarray(points.x)[:, 0], np.asarray(points.weights)[:, i]
        spread = np.repeat(values, np.rint(counts * 4).astype(int))  # four points a bin
        np.testing.assert_allclose(np.sort(spread)[::4], np.sort(x[:, i]), rtol=2.0**-4, atol=1e-5)
    x = jnp.asarray(x)
    exact = points.between(x.min(0, keepdims=True), x.max(0, keepdims=True))
    for values, weights, columns in ((*exact.channels(), x), (*exact.pooled(), x.reshape(-1, 1))):
        assert values.shape == weights.shape and float(weights.sum()) == x.size
        np.testing.assert_array_equal(values.min(0), columns.min(0))  # empty bins beyond the ends stand for nothing
        np.testing.assert_array_equal(values.max(0), columns.max(0))
    blind = st.Points.extremes(jnp.full(2, jnp.inf), jnp.full(2, -jnp.inf))  # no token was seen
    assert not blind.pooled()[0].any()
    nan = exact.between(jnp.full((1, 2), jnp.nan), exact.high)
    assert bool(jnp.isnan(nan.pooled()[0][:-1]).all())


def test_many_equal_entries_are_counted_exactly():
    """A float32 counter to which ones are added stops at 2^24."""
    n = 2**24 + 8
    s = st.Histogram(st.Even(2))
    counts = jax.jit(lambda: s.update(s.init(1), jnp.zeros((n, 1), jnp.bfloat16)).counts)()
    assert counts[4] == n and counts.sum() == n


def test_moving_average_in_order():
    s = st.MovingAverage(rate=0.25)
    batches = [X[i : i + 4] for i in range(0, 24, 4)]
    update, merge = jax.jit(s.update), jax.jit(s.merge)
    value, low, high = s.init(6), batches[0].min(0), batches[0].max(0)
    parts = [update(s.init(6), b) for b in batches]
    for i, (batch, part) in enumerate(zip(batches, parts, strict=True)):
        value = merge(value, part)
        if i:
            low, high = 0.75 * low + 0.25 * batch.min(0), 0.75 * high + 0.25 * batch.max(0)
    for got, want in zip(s.result(value), (low, high), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-5)
    other = merge(merge(merge(parts[0], parts[1]), parts[2]), merge(parts[3], merge(parts[4], parts[5])))
    for got, want in zip(s.result(other), s.result(value), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)  # associative
    reverse = merge(parts[1], parts[0])
    assert not np.allclose(s.result(reverse)[0], s.result(merge(parts[0], parts[1]))[0])  # not commutative
    hidden = update(s.init(6), X[:4], jnp.zeros(4))
    for got, want in zip(s.result(merge(parts[0], hidden)), s.result(parts[0]), strict=True):
        np.testing.assert_array_equal(got, want)
    assert np.isnan(s.result(hidden)[0]).all()
    with pytest.raises(ValueError, match="rate"):
        st.MovingAverage(0.0)


def test_bad_input():
    with pytest.raises(ValueError, match="no statistic named 'grm'"):
        st.as_statistic("grm")
    with pytest.raises(ValueError, match="one weight a token"):
        st.Gram().update(st.Gram().init(6), X, jnp.ones((3,)))
