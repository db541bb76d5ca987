"""Every rounding of every kind of element against exact fractions, and of minifloats against gfloat."""

from __future__ import annotations

from fractions import Fraction

import gfloat
import gfloat.formats
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax import rounding
from qjax.formats import E2M1, E4M3, E8M0, NF4, UE5M3, Int, Table
from qjax.quantization import dequantize, quantize

POWERS = tuple(4.0**k for k in range(-3, 4))
RADIX4 = Table("radix4", (*(-p for p in reversed(POWERS)), 0.0, *POWERS))
ELEMENTS = [Int(4), Int(3, signed=False), E2M1, E4M3, E8M0, UE5M3, NF4, RADIX4]
MODES = {
    "nearest": rounding.nearest,
    "half_away": rounding.half_away,
    "floor": rounding.floor,
    "ceil": rounding.ceil,
    "toward_zero": rounding.toward_zero,
}
POINTS = 512


def points(e) -> np.ndarray:
    """Values, midpoints, their float32 neighbours, both zeros and what lies outside: padded to one length."""
    levels = e.levels().astype(np.float64)
    middle = (levels[1:] + levels[:-1]) / 2
    some = np.random.default_rng(0).permutation(np.concatenate([levels, middle]))[:140].astype(np.float32)
    around = [np.nextafter(some, np.float32(side)) for side in (-np.inf, np.inf)]
    outside = np.float32([0.0, -0.0, 3e38, -3e38, np.inf, -np.inf, 1.7 * e.max, -1.7 * e.max])
    x = np.concatenate([outside, some, *around])
    x = x[(x == 0) | (np.abs(x) >= np.finfo(np.float32).tiny)]  # XLA flushes subnormals
    return np.pad(x, (0, POINTS - len(x)), mode="edge").astype(np.float32)


def exactly(levels: np.ndarray, x: float, mode: str) -> float | None:
    """The level that `mode` asks for, in fractions; None for a tie that only codes decide."""
    x = float(np.clip(x, levels[0], levels[-1]))
    low, high = levels[levels <= x][-1], levels[levels >= x][0]
    if mode == "toward_zero":
        mode = "floor" if x > 0 else "ceil"
    if low == high or mode in ("floor", "ceil"):
        return low if mode == "floor" else high
    down, up = (Fraction(x) - Fraction(float(low)), Fraction(float(high)) - Fraction(x))
    if down != up:
        return low if down < up else high
    return None if mode == "nearest" else low if -low > high else high


@pytest.mark.parametrize("e", ELEMENTS, ids=lambda e: e.name)
def test_modes_are_exact(e):
    x, levels = points(e), e.levels()
    got = jax.jit(lambda x: {name: e.decode(mode(e, x, None)) for name, mode in MODES.items()})(jnp.asarray(x))
    for name, values in got.items():
        want = [exactly(levels, v, name) for v in x]
        known = np.array([w is not None for w in want])
        assert known.sum() > 0.5 * POINTS
        np.testing.assert_array_equal(np.asarray(values)[known], np.float32([w for w in want if w is not None]))


@pytest.mark.parametrize(
    ("e", "info"), [(E2M1, gfloat.formats.format_info_ocp_e2m1), (E4M3, gfloat.formats.format_info_ocp_e4m3)]
)
def test_modes_are_gfloats(e, info):
    x = points(e)
    got = jax.jit(lambda x: {name: e.decode(mode(e, x, None)) for name, mode in MODES.items()})(jnp.asarray(x))
    theirs = {"nearest": "TiesToEven", "half_away": "TiesToAway", "floor": "TowardNegative", "ceil": "TowardPositive"}
    for name, mode in {**theirs, "toward_zero": "TowardZero"}.items():
        want = [gfloat.round_float(info, float(v), gfloat.RoundMode[mode], sat=True) for v in x]
        np.testing.assert_array_equal(got[name], np.float32(want))
        np.testing.assert_array_equal(np.signbit(got[name]), np.signbit(want))


def test_stochastic_rounding_is_gfloats_with_the_same_bits():
    x = (np.random.default_rng(1).integers(-8 * 2**10, 8 * 2**10, POINTS) / 2**10).astype(np.float32)
    key = jax.random.key(5)
    got = jax.jit(lambda x: E2M1.decode(rounding.stochastic(key)(E2M1, x, None)))(jnp.asarray(x))
    bits = np.asarray(jax.random.uniform(key, x.shape) * 2**23).astype(int)
    # gfloat rounds magnitudes away from zero where the bits carry; ours rounds up where the draw lies below.
    bits = np.where(x > 0, 2**23 - 1 - bits, bits)
    mode = gfloat.RoundMode.StochasticFastest
    info = gfloat.formats.format_info_ocp_e2m1
    want = [gfloat.round_float(info, float(v), mode, True, int(b), 23) for v, b in zip(x, bits, strict=True)]
    np.testing.assert_array_equal(got, np.float32(want))


def test_a_tie_is_one_before_the_zero_point_moves_it():
    w = jnp.array([-5.0, -2.5, -0.5, 0.5, 1.5, 2.5, 10.0])[:, None]
    rounded = {name: dequantize(quantize(w, "int4_affine_f32", rounding=mode))[:, 0] for name, mode in MODES.items()}
    np.testing.assert_array_equal(rounded["nearest"], dequantize(quantize(w, "int4_affine_f32"))[:, 0])
    np.testing.assert_array_equal(rounded["nearest"], [-5, -2, 0, 0, 2, 2, 10])
    np.testing.assert_array_equal(rounded["half_away"], [-5, -3, -1, 1, 2, 3, 10])
    np.testing.assert_array_equal(rounded["toward_zero"], [-5, -2, 0, 0, 1, 2, 10])
    np.testing.assert_array_equal(rounded["floor"], [-5, -3, -1, 0, 1, 2, 10])


def test_nan_is_what_the_element_makes_of_it():
    x = jnp.full(3, jnp.nan)
    modes = (*MODES.values(), rounding.stochastic(jax.random.key(0)))
    minifloat, integer = jax.jit(
        lambda x: [jnp.stack([e.decode(mode(e, x, None)) for mode in modes]) for e in (E4M3, Int(4))]
    )(x)
    assert bool(jnp.isnan(minifloat).all()) and not bool(integer.any())


def test_two_phases_round_to_even_and_odd_powers_of_two():
    x = np.exp2(np.random.default_rng(2).uniform(-5.9, 6.9, 4000)).astype(np.float32)
    even, odd = map(np.asarray, rounding.two_phase(jnp.asarray(x), jnp.ones(1), RADIX4))
    for value, cut, factor in ((even, x * 1.6, 1.0), (odd, x * 0.8, 2.0)):  # the paper: 4^n for x above 4^n / 1.6
        k = np.clip(np.floor(np.log2(cut) / 2), -3, 3)
        np.testing.assert_array_equal(value, factor * 4.0**k)
    for octave in range(-4, 5):  # in every octave one phase is too small on average and the other too large
        here = (x >= 2.0**octave) & (x < 2.0 ** (octave + 1))
        assert np.mean((even - x)[here]) * np.mean((odd - x)[here]) < 0
