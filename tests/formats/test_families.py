"""The families of elements against brute force in float64 over every level, middle and a million numbers."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats

from qjax.codebooks import abfloat, abnormal_float, additive_powers, lloyd_max, powers, two_powers
from qjax.formats import Fixed, Posit, Table, element, parse
from qjax.quantization import check, dequantize, quantize, steps
from tests.reference import posit_numpy
from tests.reference.elements_exact import probes

NEAREST = ("q3.4", "uq0.8", "q1.15", "nf3", "af4", "lloyd4_laplace", "flint4", "apot4", "sp2_4")
NEAREST += ("abfloat_e2m1b2", "bnb_fp4")
LOGS = {"log4": 1, "log5x2": 2, "log4_nozero": 1, "ulog4x4": 4}
POSITS = ("posit8", "posit7es1", "posit5es0", "posit10es3")
NAMES = (*NEAREST, *LOGS, *POSITS, "binary", "uapot4", "af4b128", "lloyd3_normal", "lloyd2_beta128")


def numbers(e) -> np.ndarray:
    """Hostile ones, half a million over the range of the levels and half a million over many binades."""
    rng = np.random.default_rng(0)
    spread = rng.normal(size=500_000) * e.max / 2
    binades = rng.choice([-1, 1], 500_000) * np.exp2(rng.uniform(-12, 2, 500_000)) * e.max
    return np.concatenate([probes(e.levels()), spread.astype(np.float32), binades.astype(np.float32)])


def coded(e, x) -> tuple[np.ndarray, np.ndarray]:
    codes, values = jax.jit(lambda x: (e.encode(x), e.decode(e.encode(x))))(x)
    assert codes.dtype == e.code_dtype
    return np.asarray(codes), np.asarray(values)


@pytest.mark.parametrize("name", NEAREST)
def test_nearest_with_ties_to_the_even_code(name):
    e = element(name)
    x, levels = np.append(numbers(e), np.float32(-np.inf)), e.levels().astype(np.float64)
    codes, values = coded(e, x)
    middles = (levels[1:] + levels[:-1]) / 2
    below = np.searchsorted(middles, x.astype(np.float64))  # of a tie the lower one
    tie = np.isin(x.astype(np.float64), middles)
    expected = below + (tie & (below % 2 == 1))
    np.testing.assert_array_equal(codes.astype(np.int64) - int(codes[-1]), expected)
    np.testing.assert_array_equal(values, levels[expected])
    assert tie.any()


@pytest.mark.parametrize("name", LOGS)
def test_logarithms_are_rounded(name):
    e, per_binade = element(name), LOGS[name]
    x = numbers(e)
    _, values = coded(e, x)
    count = np.sum(e.levels() > 0)
    with np.errstate(divide="ignore"):
        power = np.rint(np.log2(np.abs(x.astype(np.float64))) * per_binade)
    size = np.exp2(np.clip(power, 1 - count, 0) / per_binade)
    if 0 in e.levels():
        size = np.where(power <= -count, 0, size)
    sign = np.where(x < 0, -1 if e.min < 0 else 0, 1)
    np.testing.assert_array_equal(values, np.float32(sign * size))


@pytest.mark.parametrize("name", POSITS)
def test_posits_are_the_standards(name):
    e = element(name)
    assert isinstance(e, Posit)
    patterns = np.arange(2**e.bits)
    values = np.array([posit_numpy.decode(int(p), e.bits, e.es) for p in patterns])
    np.testing.assert_array_equal(e.values(), values)
    x = np.concatenate([numbers(e), np.float32([np.nan, 0.0, -0.0])])
    codes, decoded = coded(e, x)
    np.testing.assert_array_equal(codes, posit_numpy.encode(x, e.bits, e.es))
    np.testing.assert_array_equal(decoded, values[codes.astype(np.int64) % 2**e.bits])
    np.testing.assert_array_equal(codes[-2:], [0, 0])


def test_the_sign_of_zero_is_positive():
    e = element("binary")
    _, values = coded(e, np.float32([0.0, -0.0, 1e-30, -1e-30, np.inf, -np.inf, 7]))
    np.testing.assert_array_equal(values, [1, 1, 1, -1, 1, -1, 1])


@pytest.mark.parametrize("name", NEAREST)
def test_nan_is_the_value_nearest_to_zero(name):
    e = element(name)
    nan, zero = jax.jit(e.round)(np.float32([np.nan, 0]))
    assert nan == zero


@pytest.mark.parametrize("name", ["q3.4", "posit5es0", "log4"])
def test_neighbours_enclose(name):
    e = element(name)
    x = probes(e.levels())
    low, high = map(np.asarray, jax.jit(e.neighbours)(x))
    levels, inside = e.levels(), np.clip(x, e.min, e.max)
    np.testing.assert_array_equal(low, levels[np.searchsorted(levels, inside, "right") - 1])
    np.testing.assert_array_equal(high, levels[np.searchsorted(levels, inside, "left")])


@pytest.mark.parametrize("name", NAMES)
def test_names_give_elements_and_formats_back(name):
    e = element(name)
    assert e.name == name and element(e.name) == e and hash(element(name)) == hash(e)
    assert len(e.levels()) <= 2**e.bits and np.all(np.diff(e.levels()) > 0)
    for fmt in (parse(f"{name}_g32"), parse(f"{name}_cast")):
        assert fmt.element == e and parse(fmt.name) == fmt


def test_lloyd_max_has_the_published_levels():
    # Max (1960), table I, to its four digits; Laplace with two and four levels in closed form and to four digits.
    published = {
        ("normal", 3): [0, 1.224],
        ("normal", 4): [0.4528, 1.510],
        ("normal", 8): [0.2451, 0.7560, 1.344, 2.152],
        ("normal", 16): [0.1284, 0.3881, 0.6568, 0.9424, 1.256, 1.618, 2.069, 2.733],
        ("laplace", 2): [0.7071],
        ("laplace", 4): [0.4198, 1.8340],
        ("beta3", 4): [0.25, 0.75],
    }
    for (density, count), levels in published.items():
        np.testing.assert_allclose(lloyd_max(count, density)[count // 2 :], levels, atol=5e-4)


@pytest.mark.parametrize(
    ("name", "density", "count"),
    [
        ("normal", stats.norm, 256),
        ("laplace", stats.laplace(scale=0.5**0.5), 15),
        ("beta128", stats.beta(63.5, 63.5, -1, 2), 16),
        ("beta3", stats.uniform(-1, 2), 5),
    ],
)
def test_lloyd_max_levels_are_the_means_of_their_cells(name, density, count):
    levels = np.array(lloyd_max(count, name))
    edges = [density.support()[0], *((levels[1:] + levels[:-1]) / 2), density.support()[1]]
    np.testing.assert_array_equal(levels, -levels[::-1])
    for at in {0, count // 2, count // 2 + 1, count - 1}:
        a, b = edges[at], edges[at + 1]
        mass = integrate.quad(density.pdf, a, b, epsabs=0)[0]
        mean = integrate.quad(lambda t: t * density.pdf(t), a, b, epsabs=1e-12)[0] / mass
        np.testing.assert_allclose(levels[at], mean, rtol=2e-6, atol=1e-7)


def test_af4_levels_are_the_published_ones():
    # Yoshida (2023), for blocks of 64.
    published = [-1.0, -0.69441008, -0.51243739, -0.3736951, -0.25607552, -0.14982478, -0.04934812, 0.0]
    published += [0.04273164, 0.12934483, 0.21961274, 0.31675666, 0.42563882, 0.55496234, 0.72424863, 1.0]
    np.testing.assert_allclose(abnormal_float(64), published, atol=2e-7)
    # Larger blocks have larger maxima, so that the values move towards zero.
    assert np.all(np.abs(abnormal_float(4096)) <= np.abs(abnormal_float(64)))


def test_sums_of_powers_of_two():
    # The exponents of each set in the authors' code of APoT, by the bits beside the sign.
    sets = {1: [(1,)], 2: [(1, 2, 3)], 3: [(1, 2, 4), (3,)], 4: [(1, 3, 5), (2, 4, 6)]}
    sets |= {5: [(1, 3, 6), (2, 4, 7), (5,)], 6: [(1, 4, 7), (2, 5, 8), (3, 6, 9)]}
    for bits, exponents in sets.items():
        sums = {sum(t) for t in itertools.product(*([0.0, *(2.0**-e for e in group)] for group in exponents))}
        positive = np.float32(np.array(sorted(sums)) / max(sums))
        np.testing.assert_array_equal(additive_powers(bits, signed=False), positive)
        np.testing.assert_array_equal(additive_powers(bits + 1), [*-positive[:0:-1], *positive])
        assert len(positive) == 2**bits
    np.testing.assert_array_equal(np.array(two_powers(5)[-8:]) * 8, [0, 1, 2, 3, 4, 5, 6, 8])


def test_fp4_of_bitsandbytes_and_abfloat():
    table = [0, 0.005208333333, 0.16666667, 0.25, 0.33333333, 0.5, 0.66666667, 1]
    np.testing.assert_allclose(element("bnb_fp4").levels()[7:] / 12, table, rtol=1e-7)
    # OliVe's (2^mb + m) << (e + bias), the first code left out: above int4 and above int8.
    assert abfloat(2, 1, 2)[7:] == (12.0, 16.0, 24.0, 32.0, 48.0, 64.0, 96.0)
    assert abfloat(4, 3, 4)[127] == 9 * 2**4 and abfloat(4, 3, 4)[-1] == 15 * 2**19


def test_a_tensor_in_posits_and_fixed_point():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(64, 8)), jnp.float32)
    for name in ("posit5es0_g32_max1_f32", "q3.4_cast"):
        q = quantize(w, name)
        scale, _ = steps(q)
        unit = np.ones((64, 8), np.float32) if scale is None else np.repeat(np.asarray(scale), 32, axis=0)
        expected = np.asarray(jax.jit(q.meta.element.round)(np.asarray(w) / unit)) * unit
        np.testing.assert_array_equal(dequantize(q), expected)
        check(q)


def test_a_choice_between_posits_and_fixed_point_takes_the_better():
    # Signed codes of either kind are bit patterns there; half of the columns are posits.
    rng = np.random.default_rng(0)
    w = np.concatenate([rng.normal(size=(32, 3)), rng.choice(element("posit5es0").levels(), (32, 3))], axis=1)
    w[::16, 3:] = 8.0
    w = jnp.asarray(w, jnp.float32)
    fmt = parse("posit5es0_g16|q2.3_g16")
    found, *options = (np.asarray(dequantize(quantize(w, f)), np.float64) for f in (fmt, *fmt.candidates))
    mine, *errors = (((v - np.asarray(w)) ** 2).reshape(2, 16, 6).sum(1) for v in (found, *options))
    np.testing.assert_allclose(mine, np.min(errors, axis=0), rtol=1e-5)
    assert set(np.argmin(errors, axis=0).ravel()) == {0, 1}


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Fixed(0, 4), "sign bit"),
        (lambda: Fixed(9, 8), r"1\.\.16"),
        (lambda: Posit(2), r"3\.\.16"),
        (lambda: Posit(16, 4), "float32"),
        (lambda: powers(8), "2 steps"),
        (lambda: powers(1), "2 bits"),
        (lambda: additive_powers(10), "8 bits"),
        (lambda: two_powers(2), "3 to 8"),
        (lambda: abfloat(0, 2, 1), "abfloat"),
        (lambda: abnormal_float(1), "blocks"),
        (lambda: lloyd_max(1, "normal"), "2 to 256"),
        (lambda: lloyd_max(4, "cauchy"), "laplace"),
        (lambda: lloyd_max(4, "beta2"), "dimension 3"),
        (lambda: element("lloyd4_cauchy"), "laplace"),
        (lambda: element("posit"), "posit8"),
        (lambda: Table("t", (-1.0, 0.0, 1.0), cuts=(0.5,)), "one cut"),
        (lambda: Table("t", (-1.0, 0.0, 1.0), cuts=(-1.0, 0.5)), "up to the next"),
    ],
)
def test_bad_elements_say_what_is_wrong(make, word):
    with pytest.raises(ValueError, match=word):
        make()


def test_dynamic_fixed_point_has_the_most_fraction_bits_that_hold_the_largest_magnitude():
    rng = np.random.default_rng(0)
    w = jnp.asarray(rng.normal(size=(6, 64, 8)) * np.exp2(rng.integers(-20, 20, (6, 1, 1))), jnp.float32)
    w = w.at[0].set(0.0).at[0, 0, 0].set(2.0**5 * 127 / 128).at[1].multiply(0.0).at[1, 0, 0].set(1.0)
    values = np.asarray(dequantize(quantize(w, "dfp8", batch_axes=1)))
    for x, got in zip(np.asarray(w, np.float64), values, strict=True):
        n = next(n for n in range(60, -60, -1) if np.abs(x).max() * 2.0**n <= 127)
        np.testing.assert_array_equal(got, np.clip(np.rint(x * 2.0**n), -128, 127) / 2.0**n)
