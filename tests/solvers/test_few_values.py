"""Dual scales, powers, clusters, outliers and groups of unequal width: each against its definition."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax import dispatch
from qjax.dispatch import dense
from qjax.quantization import bits_per_weight, dequantize
from qjax.solvers import aser, bitstack, d2quant, gobo, mixed_groups, nupes, outliers, rtn, squeezellm, twn, whitening
from tests.solvers.cases import K, N, gram, output_error, problem, quick


def test_dual_scale_steps_are_least_squares() -> None:
    w = np.asarray(problem(1)[0], np.float64)
    c = np.abs(w).mean(1) / np.abs(w).mean()
    errors = []
    for _ in range(4):
        q = np.asarray(dequantize(rtn(jnp.asarray(w / c[:, None], jnp.float32), "int3_channel")), np.float64)
        errors.append(np.sum((w - c[:, None] * q) ** 2))
        c = np.abs((w * q).sum(1)) / (q * q).sum(1)
        c = c / c.mean()
    fitted = quick(lambda w: d2quant.dual_scale(w, "int3_channel", steps=4))
    found = fitted(jnp.asarray(w, jnp.float32))
    np.testing.assert_allclose(found.errors[1:], errors, rtol=1e-2)
    np.testing.assert_array_equal(fitted(jnp.zeros((K, N))).scale, 1)


def test_powers() -> None:
    w, x = problem(2)
    fit = quick(lambda w, exponents, gram=None: nupes.power(w, "int4_g16_f32", exponents=exponents, gram=gram))
    exponents = jnp.asarray(nupes.EXPONENTS)
    found = fit(w, exponents)
    uniform = dequantize(rtn(w, "int4_g16_narrow_f32"))
    np.testing.assert_allclose(dequantize(fit(w, jnp.ones(15)).q), uniform, rtol=1e-6)
    assert float(jnp.min(found.errors)) < float(jnp.sum((w - uniform) ** 2))
    np.testing.assert_allclose(jnp.sum((w - dequantize(found.q)) ** 2), jnp.min(found.errors), rtol=1e-5)
    # The paper's own rounding, in the space of powers.
    cut = np.asarray(w, np.float64).reshape(-1, 16, N)
    absmax = np.abs(cut).max(1, keepdims=True)
    for a, error in zip(nupes.EXPONENTS, found.errors, strict=True):
        values = np.sign(cut) * (np.rint((np.abs(cut) / absmax) ** a * 7) / 7) ** (1 / a) * absmax
        assert float(error) <= np.sum((cut - values) ** 2) * (1 + 1e-5)
    weighted = fit(w, exponents, gram(x))
    np.testing.assert_allclose(output_error(x, w - dequantize(weighted.q)), jnp.min(weighted.errors), rtol=1e-3)
    with pytest.raises(ValueError, match="symmetric integer"):
        nupes.power(w, "nf4_g16")


def test_clusters_are_gobos() -> None:
    w = problem(3)[0]
    outlier = gobo.unlikely(w, -1.5) > 0
    x = np.asarray(w, np.float64)
    z = (x - x.mean()) / x.std()
    density = np.exp(-0.5 * z**2) / (x.std() * np.sqrt(2 * np.pi))
    np.testing.assert_array_equal(outlier, np.log(density) < -1.5)
    found = quick(lambda w, counted: gobo.cluster(w, counted, 3, steps=30))(w, ~outlier)
    kept = np.sort(x[~np.asarray(outlier)])
    table = np.array([part.mean() for part in np.split(kept, np.round(np.arange(1, 8) / 8 * kept.size).astype(int))])
    errors, best = [], table
    while errors == sorted(errors, reverse=True):
        code = np.abs(kept[:, None] - table).argmin(1)
        errors.append(np.abs(kept - table[code]).sum())
        best = table if errors[-1] == min(errors) else best
        table = np.array([kept[code == i].mean() for i in range(8)])
    assert 2 < len(errors) < 30
    np.testing.assert_allclose(found.errors[: len(errors)], errors, rtol=1e-4)
    assert jnp.all(jnp.isnan(found.errors[len(errors) :]))
    np.testing.assert_allclose(found.q.table[0, 0], best, rtol=1e-4, atol=1e-6)
    assert min(errors) < errors[0]
    np.testing.assert_allclose(bits_per_weight(found.q), 3 + 8 * 32 / w.size)


def test_split_is_exact_and_takes_the_highest() -> None:
    w = problem(4)[0]
    dense, sparse = outliers.split(w, jnp.abs(w), 30, dtype="float16")
    np.testing.assert_array_equal(dense + dispatch.dense(sparse).astype(jnp.float32), w)
    moved = np.zeros((K, N), bool)
    moved[np.asarray(sparse.ins), np.asarray(sparse.outs)] = True
    assert moved.sum() == 30 and np.abs(np.asarray(w))[moved].min() >= np.abs(np.asarray(w))[~moved].max()
    assert np.abs(np.asarray(dense))[moved].max() < 1e-3
    for bad in (0, w.size + 1):
        with pytest.raises(ValueError, match="entries"):
            outliers.split(w, w, bad)


def test_groups_are_ordered_by_range() -> None:
    w, x = problem(5)
    score = mixed_groups.sensitivity(w, 16)
    cut = np.asarray(w).reshape(6, 16, N)
    np.testing.assert_allclose(score, ((cut.max(1) - cut.min(1)) ** 2).sum(1), rtol=1e-5)
    high, low = mixed_groups.order(score, 16, 2)
    best = np.sort(np.argsort(-np.asarray(score))[:2])
    np.testing.assert_array_equal(high.reshape(2, 16)[:, 0] // 16, best)
    np.testing.assert_array_equal(np.sort(np.concatenate([high, low])), np.arange(K))
    weighted = mixed_groups.sensitivity(w, 16, gram(x))
    np.testing.assert_allclose(weighted, score * (np.asarray(x) ** 2).sum(0).reshape(6, 16).mean(1), rtol=1e-4)
    with pytest.raises(ValueError, match="divide"):
        mixed_groups.sensitivity(w, 7)


def test_outlier_channels_keep_their_place_when_smoothed() -> None:
    w, x = problem(6, dead=3)
    size, weight = jnp.mean(jnp.abs(x), axis=0), jnp.mean(jnp.abs(w), axis=1)
    chosen = aser.outliers(size, weight, 5)
    m = aser.smoothing(size, chosen)
    assert int(chosen.sum()) == 5 and bool(chosen[7]) and bool(chosen[50])
    np.testing.assert_allclose((size / m)[chosen], jnp.min(size[chosen]), rtol=1e-5)
    np.testing.assert_array_equal(m[~chosen], 1)
    np.testing.assert_array_equal(aser.outliers(size / m, weight * m, 5), chosen)


def test_rank_of_a_share_of_the_spectrum() -> None:
    w, x = problem(7)
    root = whitening.whiten(gram(x))
    s = np.linalg.svd(np.asarray(x, np.float64) @ np.asarray(w, np.float64), compute_uv=False)
    for alpha in (0.3, 0.9):
        rank = int(aser.rank(w, root, alpha))
        assert s[: rank - 1].sum() <= alpha * s.sum() < s[:rank].sum()
    with pytest.raises(ValueError, match="between 0 and 1"):
        aser.rank(w, root, 1.0)


def test_a_stack_takes_the_residual_apart() -> None:
    w = problem(8)[0]
    found = quick(lambda w: bitstack.decompose(w, depth=3, rank=2))(w)
    rest, errors = np.asarray(w, np.float64), []
    for _ in range(3):
        signs = np.where(rest < 0, -1.0, 1.0)
        u, s, vt = np.linalg.svd(np.abs(rest), full_matrices=False)
        rest = rest - signs * (u[:, :2] * s[:2] @ vt[:2])
        errors.append(np.sum(rest**2))
    np.testing.assert_allclose(found.errors, errors, rtol=1e-3)
    assert errors[2] < errors[1] < errors[0]
    op = bitstack.operator(found)
    np.testing.assert_allclose(dispatch.dense(op), np.asarray(w) - rest, atol=2e-3)
    assert dispatch.bits(op) == 3 * (K * N + 16 + 16 * 2 * (K + N))


def optimal(x: np.ndarray, share: np.ndarray, levels: int) -> float:
    """The least Σ share (x - level)² over all tables, by dynamic programming over the sorted values."""
    order = np.argsort(x)
    x, share = x[order], share[order]
    mass, first, second = (np.concatenate([[0], np.cumsum(share * x**p)]) for p in (0, 1, 2))

    def cost(i: int, j: int) -> float:
        m = mass[j] - mass[i]
        return second[j] - second[i] - (first[j] - first[i]) ** 2 / m if m > 0 else 0.0

    best = [cost(0, j) for j in range(len(x) + 1)]
    for _ in range(levels - 1):
        best = [0.0, *(min(best[i] + cost(i, j) for i in range(j)) for j in range(1, len(x) + 1))]
    return best[-1]


def test_sensitive_clusters_are_nearly_the_optimal_ones() -> None:
    w, x = problem(5)
    w = jnp.concatenate([w, jnp.zeros((K, 1))], axis=1).at[3, 2].set(40.0)
    fisher = jnp.square(jax.random.normal(jax.random.key(1), w.shape)) * jnp.diagonal(gram(x))[:, None]
    for share in (fisher, jnp.diagonal(gram(x))[:, None]):
        found = quick(lambda w, s: squeezellm(w, s, "int2", outliers=0.02, sensitive=0.01))(w, share)
        q, sparse = found.ops
        count = round(0.02 * w.size) + round(0.01 * w.size)
        apart = np.zeros(w.shape, bool)
        apart[np.asarray(sparse.ins), np.asarray(sparse.outs)] = True
        assert apart.sum() == count == len(sparse.values) and apart[3, 2]
        np.testing.assert_allclose(np.asarray(dense(found))[apart], np.asarray(w)[apart], rtol=1e-3, atol=1e-4)
        # The largest stay apart, and of the others those whose share times square is largest.
        score = np.where(apart, 0, np.abs(w))
        assert np.sort(np.abs(w), axis=None)[-round(0.02 * w.size)] >= score.max()
        counted = np.where(apart, 0, np.broadcast_to(share, w.shape)).astype(np.float64)
        rest = (np.asarray(w) - np.asarray(dequantize(q))).astype(np.float64)
        lost = np.sum(counted * rest**2, axis=0)
        best = np.array([optimal(np.asarray(w, np.float64)[:, n], counted[:, n], 4) for n in range(w.shape[1])])
        assert (lost >= best * (1 - 1e-3) - 1e-6).all() and lost.sum() < 1.1 * best.sum()
        assert bits_per_weight(q) == 2 + 4 * 16 / K
    with pytest.raises(ValueError, match="shares 0 and 0"):
        squeezellm(w, fisher, "int2", outliers=0, sensitive=0)
    with pytest.raises(ValueError, match="sensitivity"):
        squeezellm(w, fisher[:, :2], "int2")


def test_ternary_weights_are_twns() -> None:
    """Each group against the paper's equations; no scale serves its ternary numbers better."""
    w = problem(8)[0][:88]  # the last group of 16 is half padding
    w = w.at[:16, 0].set(0.0).at[16:32, 1].set(-0.25)
    q = quick(lambda w: twn(w, "int2_g16_narrow_f32"))(w)
    found, x = np.asarray(dequantize(q)), np.asarray(w, np.float64)
    for rows in np.split(np.arange(88), range(16, 88, 16)):
        for column in range(N):
            group, size = x[rows, column], np.abs(x[rows, column])
            kept = size > 0.7 * size.mean()
            alpha = size[kept].mean() if kept.any() else 0.0
            np.testing.assert_allclose(found[rows, column], np.sign(group) * kept * alpha, rtol=2e-6)
            others = [((group - np.sign(group) * kept * a) ** 2).sum() for a in (0.99 * alpha, 1.01 * alpha)]
            assert ((group - found[rows, column]) ** 2).sum() <= min(others)
    hostile = twn(w.at[0, 3].set(jnp.nan).at[0, 4].set(jnp.inf), "int2_g16_narrow_f32")
    back = np.asarray(dequantize(hostile))
    assert np.isnan(back[:16, 3]).all() and not np.isnan(back[16:]).any() and back[0, 4] > 3e38
    with pytest.raises(ValueError, match="ternary"):
        twn(w, "int2_g16")
    with pytest.raises(ValueError, match="positive"):
        twn(w, threshold=0.0)
