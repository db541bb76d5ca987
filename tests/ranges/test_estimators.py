"""Every range estimator: one law for weights, one table of hostile blocks, and each against its own definition."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, optimize, stats

from qjax import ranges
from qjax.formats import E2M1, Format, Int, parse
from qjax.quantization import check, dequantize, fit, quantize
from qjax.ranges.analytic_clipping import clip
from qjax.ranges.divergence import divergence_argmin
from qjax.ranges.weight_binning import COEFFICIENTS

SYMMETRIC, AFFINE = parse("int4_f32"), parse("int4_affine_f32")
UNSIGNED = Format(Int(4, signed=False), scale="float32")
ESTIMATORS = {
    "absmax": ranges.absmax,
    "minmax": ranges.minmax,
    "fixed": ranges.fixed(-1.5, 1.5),
    "percentile": ranges.percentile(90.0),
    "mse": ranges.mse(points=8),
    "aciq laplace": ranges.aciq(),
    "aciq gaussian": ranges.aciq("gaussian"),
    "sawb": ranges.sawb(),
    "entropy": ranges.entropy(bins=32),
}
FORMATS = {"symmetric": SYMMETRIC, "affine": AFFINE}


def data(n: int = 256, columns: int = 4, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).laplace(0.1, 1.0, (n, columns)).astype(np.float32)


@functools.partial(jax.jit, static_argnames="weighted")
def estimate(x, weights, weighted):
    """{format: {estimator: (low, high)}} of every estimator on the columns of x, in one program."""

    def project(fmt):
        def apply(low, high):
            steps = 15.0 / (high - low)
            return jnp.clip(jnp.round((x - low) * steps), 0, 15) / steps + low

        return apply

    w = weights if weighted else None
    return {
        name: {key: e(x, (-2,), fmt, project(fmt), w) for key, e in ESTIMATORS.items()} for name, fmt in FORMATS.items()
    }


def rows(columns: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    """Columns of any length as one array of 256 rows (every program here has that shape), and what is not padding."""
    padded = [np.pad(c, (0, 256 - len(c))) for c in columns]
    return np.stack(padded, 1).astype(np.float32), np.stack([np.arange(256) < len(c) for c in columns], 1)


def test_a_weight_is_a_repetition():
    x = data(60, 8)
    times = np.stack([np.random.default_rng(i).permutation(np.tile([0, 1, 2, 5], 15)) for i in range(8)], axis=1)
    for extreme in (x.argmin(0), x.argmax(0)):
        times[extreme, range(8)] = 1  # extremes count whatever they weigh: keep them
    repeated, once = rows([np.repeat(x[:, i], times[:, i]) for i in range(8)])
    single, there = rows(list(x.T))
    weights = np.where(there, np.pad(times, ((0, 196), (0, 0))), 0)
    got = estimate(jnp.asarray(single), jnp.asarray(weights, jnp.float32), True)
    want = estimate(jnp.asarray(repeated), jnp.asarray(once, jnp.float32), True)
    for fmt in FORMATS:
        for key in ESTIMATORS:
            np.testing.assert_allclose(got[fmt][key], want[fmt][key], rtol=2e-6, err_msg=f"{fmt} {key}")


def test_ones_are_no_weights():
    x = jnp.asarray(data(256, 8))
    jax.tree.map(
        functools.partial(np.testing.assert_allclose, rtol=2e-6),
        estimate(x, jnp.ones_like(x), True),
        estimate(x, jnp.ones_like(x), False),
    )


def test_hostile_blocks():
    """Zeros, a constant, a lone value, tiny, huge, one infinity, one NaN: a range that contains what it should."""
    x = np.zeros((256, 8), np.float32)
    x[:, 1], x[3, 2] = 0.75, -2.0
    x[:, 3], x[:, 4], x[:, 5], x[:, 6] = data()[:, 0] * 1e-38, data()[:, 0] * 1e37, data()[:, 0], data()[:, 0]
    x[5, 5], x[5, 6], x[:, 7] = np.inf, np.nan, data()[:, 0]
    got = estimate(jnp.asarray(x), jnp.ones(x.shape), False)
    for fmt in FORMATS:
        for key, (low, high) in got[fmt].items():
            low, high = np.asarray(low)[0], np.asarray(high)[0]
            assert np.isnan(low[6]) and np.isnan(high[6]), key
            finite = [0, 1, 2, 3, 4, 7]
            assert np.isfinite(low[finite]).all() and np.isfinite(high[finite]).all(), key
            others = [i for i in range(8) if i != 6]
            assert (low[others] <= high[others]).all(), key
            if key == "fixed":
                continue
            assert low[0] == high[0] == 0, key
            assert max(-low[1], high[1]) == np.float32(0.75), key  # one value has no distribution: it stays
            assert high[4] > 1e37 and 0 < high[3] <= np.abs(x[:, 3]).max(), key
            assert not np.isnan(high[5]) and high[5] > 1, key


@pytest.mark.parametrize("key", ["percentile", "aciq laplace", "mse"])
def test_the_whole_way_from_hostile_blocks_to_codes(key):
    x = np.zeros((256, 8), np.float32)
    x[:, 1], x[3, 2], x[:, 3], x[:, 4], x[:, 5] = 0.75, -2.0, data()[:, 0] * 1e-38, data()[:, 0] * 1e37, data()[:, 0]
    q = quantize(jnp.asarray(x), "int4_f32", range=ESTIMATORS[key])
    check(q)
    back = np.asarray(dequantize(q))
    assert (back[:, 0] == 0).all() and np.isfinite(back).all()
    np.testing.assert_allclose(back[:, 1], 0.75, rtol=0.07)
    scale = np.abs(x[:, 3:6]).max(0)
    assert (np.abs(back[:, 3:6].astype(np.float64) - x[:, 3:6]).mean(0) < 0.1 * scale).all()


def test_one_value():
    for key in ESTIMATORS.keys() - {"entropy", "fixed"}:
        q = quantize(jnp.full((1, 1), -3.0), "int8_f32", range=ESTIMATORS[key] if key != "sawb" else None)
        np.testing.assert_allclose(dequantize(q), -3.0, rtol=0.005)
    with pytest.raises(ValueError, match="blocks of 1 values"):
        quantize(jnp.ones((1, 1)), "int8", range=ranges.entropy())


def test_fixed_ends_saturate():
    w = jnp.array([-300.0, -255.0, 4.0, 10000.0])[:, None]  # the seed's example: [-255, 255] to [-127, 127]
    q = quantize(w, "int8_narrow_f32", range=ranges.fixed(-255.0, 255.0))
    assert q.codes[:, 0].tolist() == [-127, -127, 2, 127]


def test_moving_average_is_the_loop():
    ends = data(7, 3)
    mean = ends[0].astype(np.float64)
    for end in ends[1:]:
        mean = 0.99 * mean + 0.01 * end
    np.testing.assert_allclose(ranges.moving_average(jnp.asarray(ends)), mean, rtol=1e-6)
    np.testing.assert_array_equal(ranges.moving_average(jnp.asarray(ends[:1])), ends[0])
    for bad in (dict(rate=0.0), dict(rate=1.5)):
        with pytest.raises(ValueError, match="rate"):
            ranges.moving_average(jnp.asarray(ends), **bad)
    with pytest.raises(ValueError, match="no batches"):
        ranges.moving_average(jnp.zeros((0, 3)))


def test_narrow_integers_have_no_sign_bias():
    """Without the code -2^(b-1) the grid is symmetric, so negated values get negated codes whatever saturates (B8)."""
    x = jnp.asarray(data() * 3)
    narrow, full = (
        [quantize(s * x, f, range=ranges.fixed(-1.0, 1.0)).codes.astype(jnp.int32) for s in (1, -1)]
        for f in ("int4_narrow_f32", "int4_f32")
    )
    np.testing.assert_array_equal(narrow[0], -narrow[1])
    assert float((full[0] + full[1]).mean()) < -0.3  # where both saturate: -8 against 7


# KL calibration


def least_divergence(counts: np.ndarray, levels: int) -> int:
    """The definition with loops in float64 (Migacz, GTC 2017, "pseudocode")."""
    best, kept = np.inf, len(counts)
    for i in range(levels, np.flatnonzero(counts)[-1] + 2):
        p, level = counts[:i].astype(np.float64), np.arange(i) * levels // i
        q = np.zeros(i)
        for n in range(levels):
            filled = (level == n) & (p > 0)
            if filled.any():
                q[filled] = p[level == n].sum() / filled.sum()
        p[-1] += counts[i:].sum()
        p, q = p / p.sum(), q / q.sum() if q.any() else q
        some = p > 0
        kl = np.inf if (q[some] == 0).any() else np.sum(p[some] * np.log(p[some] / q[some]))
        if kl <= best:
            best, kept = kl, i
    return kept


def test_divergence_is_the_definition():
    rng = np.random.default_rng(3)
    draws = [
        rng.normal(size=20000),
        rng.laplace(size=20000),
        rng.standard_t(3, size=20000),
        np.exp(rng.normal(size=900)),
    ]
    counts = np.stack([np.histogram(np.abs(d), 256, (0, np.abs(d).max()))[0] for d in draws])
    got = jax.jit(divergence_argmin, static_argnums=1)(jnp.asarray(counts, jnp.float32), 64)
    assert got.tolist() == [least_divergence(c, 64) for c in counts]
    few = jax.jit(divergence_argmin, static_argnums=1)(jnp.asarray(counts, jnp.float32), 8)
    assert few.tolist() == [least_divergence(c, 8) for c in counts]


def test_entropy_of_values():
    x = np.random.default_rng(4).standard_t(3, size=(5000, 1)).astype(np.float32)
    reach = np.abs(x).max()
    width = 2.0 ** np.ceil(np.log2(reach)) / 256
    counts = np.bincount((np.abs(x[:, 0]) / width).astype(int), minlength=256)
    grid = fit(jnp.asarray(x), "int8_narrow_f32", range=ranges.entropy(bins=128))
    np.testing.assert_allclose(grid.scales[0] * 127, least_divergence(counts, 128) * width, rtol=1e-6)
    one_sided = fit(jnp.asarray(np.abs(x)), UNSIGNED, range=ranges.entropy(bins=128))
    np.testing.assert_allclose(one_sided.scales[0] * 15, least_divergence(counts, 16) * width, rtol=1e-6)
    with pytest.raises(ValueError, match="evenly spaced"):
        fit(jnp.asarray(x), Format(E2M1, scale="float32"), range=ranges.entropy())
    with pytest.raises(ValueError, match="16 bins"):
        fit(jnp.asarray(x), "int8", range=ranges.entropy(bins=16))


# ACIQ

PUBLISHED = {  # of the authors' repository, for 2..8 bits
    "laplace": (2.83068299, 3.89722946, 5.02864014, 6.20476633, 7.41312622, 8.64561995, 9.89675982),
    "gaussian": (1.71063519, 2.15159277, 2.55913646, 2.93620062, 3.28691474, 3.6151146, 3.92403714),
}


@pytest.mark.parametrize("prior", PUBLISHED)
def test_aciq_clips_are_the_published_ones_and_minimize_the_noise(prior):
    np.testing.assert_allclose([clip(prior, bits) for bits in range(2, 9)], PUBLISHED[prior], rtol=3e-6)
    density = {"laplace": stats.laplace, "gaussian": stats.norm}[prior].pdf

    def noise(a: float, bits: int) -> float:
        return a**2 / (3 * 4**bits) + 2 * integrate.quad(lambda x: density(x) * (x - a) ** 2, a, 40)[0]

    for bits in (2, 4, 8):
        best = optimize.minimize_scalar(noise, args=(bits,), bounds=(0.5, 15), options={"xatol": 1e-8}).x
        np.testing.assert_allclose(clip(prior, bits), best, rtol=1e-4)


def test_aciq_of_samples():
    x = data(4096, 1, seed=6)
    b, sigma, mu = np.abs(x - x.mean()).mean(), x.std(), x.mean()
    for e, width in ((ranges.aciq(), 5.02864014 * b), (ranges.aciq("gaussian"), 2.55913646 * sigma)):
        grid = fit(jnp.asarray(x), SYMMETRIC, range=e)
        np.testing.assert_allclose(grid.scales[0] * 7.5, abs(mu) + width, rtol=1e-4)
        low, high = e(jnp.asarray(x), (-2,), AFFINE, lambda low, high: low)
        np.testing.assert_allclose([low[0, 0], high[0, 0]], [mu - width, mu + width], rtol=1e-4)
    positive = fit(jnp.asarray(np.abs(x)), UNSIGNED, range=ranges.aciq())
    mean = np.abs(x).mean()
    want = mean + 6.20476633 * np.abs(np.abs(x) - mean).mean()
    np.testing.assert_allclose(positive.scales[0] * 15, min(want, np.abs(x).max()), rtol=1e-4)
    with pytest.raises(ValueError, match="evenly spaced"):
        quantize(jnp.asarray(x), "nf4_f32", range=ranges.aciq())
    with pytest.raises(ValueError, match="prior"):
        ranges.aciq("cauchy")


def test_bit_allocation_minimizes_the_sum_of_rounding_noise():
    clips = np.array([0.2, 1.0, 3.0, 9.0])
    bits = np.asarray(ranges.bit_allocation(jnp.asarray(clips, jnp.float32), 4.0), np.float64)
    np.testing.assert_allclose(np.exp2(bits).sum(), 4 * 16, rtol=1e-6)

    def noise(free):
        bins = np.append(free, 64 - free.sum())
        return np.sum(clips**2 / (3 * bins**2)) if (bins > 0).all() else np.inf

    best = optimize.minimize(noise, np.full(3, 16.0), method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-14})
    np.testing.assert_allclose(np.exp2(bits[:3]), best.x, rtol=1e-4)


def test_correction_restores_mean_and_variance():
    w = jnp.asarray(data(64, 3))
    rounded = dequantize(quantize(w, "int2_f32"))
    gain, shift = ranges.correction(w, rounded, (-2,))
    fixed = np.asarray(gain * rounded + shift)
    np.testing.assert_allclose(fixed.mean(0), w.mean(0), atol=1e-6)
    np.testing.assert_allclose(fixed.std(0), np.asarray(w).std(0), rtol=1e-5)
    gain, shift = ranges.correction(jnp.ones((4, 1)), jnp.zeros((4, 1)), (-2,))
    assert gain.tolist() == [[1.0]] and shift.tolist() == [[1.0]]


# SAWB

SIX = {
    "gauss": stats.norm(),
    "laplace": stats.laplace(),
    "logistic": stats.logistic(),
    "triangle": stats.triang(0.5, -1, 2),
    "uniform": stats.uniform(-1, 2),
    "von mises": stats.vonmises(1.0),
}


@functools.cache
def sample(name: str) -> tuple[np.ndarray, np.ndarray]:
    x = np.linspace(-np.pi, np.pi, 20001) if name == "von mises" else SIX[name].ppf(np.linspace(1e-8, 1 - 1e-8, 3))
    x = np.linspace(x[0], x[-1], 20001)
    p = SIX[name].pdf(x)
    return x, p / p.sum()


def mean_square(a: float, n: int, x: np.ndarray, p: np.ndarray) -> float:
    step = 2 * a / (n - 1)
    return float(np.sum(p * (x - (np.clip(np.rint((x + a) / step), 0, n - 1) * step - a)) ** 2))


@pytest.mark.parametrize("n", [3, 4, 8, 15, 16])
def test_sawb_coefficients_are_the_fit_over_six_distributions(n):
    ratio, best, ours = [], [], []
    for name in SIX:
        x, p = sample(name)
        first, second = np.sum(p * np.abs(x)), np.sqrt(np.sum(p * x * x))
        clips = np.linspace(0.5 * first, 7 * first, 300)
        error = [mean_square(a, n, x, p) for a in clips]
        ratio, best = [*ratio, second / first], [*best, clips[np.argmin(error)] / first]
        c1, c2 = COEFFICIENTS[n]
        ours.append(mean_square(c1 * second - c2 * first, n, x, p) / min(error))
    line = np.polyval(np.polyfit(ratio, best, 1), ratio)
    c1, c2 = COEFFICIENTS[n]
    np.testing.assert_allclose(c1 * np.array(ratio) - c2, line, rtol=0.04)
    assert max(ours) < 1.3  # the clip of the formula costs little on each of the six


def test_sawb_of_weights():
    w = data(512, 2)
    for name, n in (("int4_f32", 16), ("int4_narrow_f32", 15), ("int2_f32", 4), ("int2_narrow_f32", 3)):
        c1, c2 = COEFFICIENTS[n]
        want = c1 * np.sqrt((w**2).mean(0)) - c2 * np.abs(w).mean(0)
        step = 2 * want / (n - 1)
        np.testing.assert_allclose(fit(jnp.asarray(w), name, range=ranges.sawb()).scales[0][0], step, rtol=1e-4)
    with pytest.raises(ValueError, match="coefficients for 3, 4"):
        quantize(jnp.asarray(w), "int6_narrow", range=ranges.sawb())


# Half-wave Gaussian


def test_half_wave_steps_are_the_published_ones():
    published = (0.799, 0.538, 0.3217, 0.185, 0.104, 0.058)  # for 1..6 bits, of the authors, from samples
    np.testing.assert_allclose([ranges.half_wave_step(2**b - 1) for b in range(1, 7)], published, rtol=0.03)
    x = np.linspace(0, 8, 40001)[1:]
    p = stats.norm.pdf(x)

    def error(step):
        return np.sum(p * (x - step * np.clip(np.rint(x / step), 1, 3)) ** 2)

    best = optimize.minimize_scalar(error, bounds=(0.3, 1.0), options={"xatol": 1e-7}).x
    np.testing.assert_allclose(ranges.half_wave_step(3), best, rtol=1e-3)


def test_half_wave_of_rectified_values():
    x = np.maximum(np.random.default_rng(7).normal(0, 2, (20000, 1)), 0).astype(np.float32)
    fmt = Format(Int(2, signed=False), scale="float32")
    want = 2 * ranges.half_wave_step(3)
    np.testing.assert_allclose(fit(jnp.asarray(x), fmt, range=ranges.half_wave()).scales[0], want, rtol=0.02)
    np.testing.assert_allclose(fit(jnp.asarray(x), fmt, range=ranges.half_wave(2.0)).scales[0], want, rtol=1e-6)
    for bad, words in ((lambda: fit(jnp.asarray(x), "int2", range=ranges.half_wave()), "unsigned"),
                       (lambda: ranges.half_wave(0.0), "sigma")):  # fmt: skip
        with pytest.raises(ValueError, match=words):
            bad()
