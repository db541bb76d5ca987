"""Minifloats bit for bit: ml_dtypes, gfloat and exact rational rounding."""

from __future__ import annotations

import gfloat
import gfloat.formats as gf
import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from qjax.formats import E2M1, E2M3, E3M2, E4M3, E5M2, E8M0, UE5M3, Float, element
from tests.reference.elements_exact import nearest_codes, probes

STANDARD = {
    "e4m3": (E4M3, ml_dtypes.float8_e4m3fn, gf.format_info_ocp_e4m3),
    "e5m2": (E5M2, ml_dtypes.float8_e5m2, gf.format_info_ocp_e5m2),
    "e3m2": (E3M2, ml_dtypes.float6_e3m2fn, gf.format_info_ocp_e3m2),
    "e2m3": (E2M3, ml_dtypes.float6_e2m3fn, gf.format_info_ocp_e2m3),
    "e2m1": (E2M1, ml_dtypes.float4_e2m1fn, gf.format_info_ocp_e2m1),
}
OTHERS = [
    UE5M3,
    Float(4, 3, signed=False, specials="nan"),
    Float(3, 4),
    Float(1, 2),
    Float(4, 0),
    Float(3, 3, specials="ieee"),
    Float(4, 3, bias=11, specials="none"),
    Float(2, 2, zero=False),
    Float(2, 2, subnormals=False),
    Float(1, 0, signed=False),
]


CASTS = {name: dtype for name, (_, dtype, _) in STANDARD.items()} | {
    "e4m3_fnuz": ml_dtypes.float8_e4m3fnuz,
    "e4m3b11_fnuz": ml_dtypes.float8_e4m3b11fnuz,
    "e5m2_fnuz": ml_dtypes.float8_e5m2fnuz,
    "e4m3_ieee": ml_dtypes.float8_e4m3,
    "e3m4_ieee": ml_dtypes.float8_e3m4,
    "fp16": np.float16,
    "bf16": ml_dtypes.bfloat16,
}


def codes_of_all(e):
    return np.arange(2**e.bits, dtype=e.code_dtype)


@pytest.mark.parametrize("name", STANDARD)
def test_every_code_decodes_as_ml_dtypes_and_gfloat(name):
    e, dtype, info = STANDARD[name]
    codes = codes_of_all(e)
    ours = np.asarray(jax.jit(e.decode)(codes))
    theirs = codes.view(dtype).astype(np.float32)
    np.testing.assert_array_equal(ours, theirs)
    np.testing.assert_array_equal(np.signbit(ours)[~np.isnan(ours)], np.signbit(theirs)[~np.isnan(ours)])
    np.testing.assert_array_equal(ours, [gfloat.decode_float(info, int(c)).fval for c in codes])
    np.testing.assert_array_equal(ours, e.values())


def test_e8m0_decodes_as_ml_dtypes():
    codes = codes_of_all(E8M0)
    theirs = codes.view(ml_dtypes.float8_e8m0fnu).astype(np.float32)
    # Compared as bits: 2^-127 is a float32 subnormal.
    ours = np.asarray(E8M0.decode(codes))
    np.testing.assert_array_equal(ours.view(np.uint32)[:255], theirs.view(np.uint32)[:255])
    assert np.isnan(ours[255])
    np.testing.assert_array_equal(E8M0.values(), theirs)


@pytest.mark.parametrize("name", STANDARD)
def test_encoding_is_ml_dtypes_cast_within_range_and_saturates_beyond(name):
    e, dtype, info = STANDARD[name]
    x = np.concatenate([probes(e.levels()), np.random.default_rng(0).normal(0, e.max / 3, 2000).astype(np.float32)])
    codes, rounded = jax.jit(lambda x: (e.encode(x), e.round(x)))(x)
    np.testing.assert_array_equal(codes, np.clip(x, e.min, e.max).astype(dtype).view(np.uint8))
    np.testing.assert_array_equal(rounded, gfloat.round_ndarray(info, x.astype(np.float64), sat=True))


@pytest.mark.parametrize("name", CASTS)
def test_every_code_and_a_million_numbers_are_the_cast_of_ml_dtypes(name):
    e, dtype = element(name), CASTS[name]
    decoded = codes_of_all(e).view(dtype).astype(np.float32)
    finite = np.isfinite(decoded)
    x = np.random.default_rng(0).normal(size=1_000_000).astype(np.float32)
    x = np.clip(x * np.exp2(np.random.default_rng(1).uniform(-24, 20, len(x))).astype(np.float32), e.min, e.max)
    encoded, round_trip = jax.jit(lambda x, codes: (e.encode(x), e.decode(codes)))(x, codes_of_all(e))
    np.testing.assert_array_equal(encoded, x.astype(dtype).view(e.code_dtype))
    np.testing.assert_array_equal(np.asarray(round_trip).view(np.uint32)[finite], decoded.view(np.uint32)[finite])
    assert np.isnan(np.asarray(round_trip)[np.isnan(decoded)]).all()


def test_e8m0_encodes_positive_numbers_as_ml_dtypes():
    levels = np.ldexp(1.0, np.arange(-126, 128))
    x = probes(levels)
    x = x[(x > 0) & (x <= 2.0**127)]
    np.testing.assert_array_equal(np.asarray(E8M0.encode(x)), x.astype(ml_dtypes.float8_e8m0fnu).view(np.uint8))
    # Where ml_dtypes gives NaN: a scale never vanishes and never overflows.
    assert E8M0.encode(jnp.float32([0.0, -0.0, -1.0, np.inf, 3.4e38])).tolist() == [0, 0, 0, 254, 254]


@pytest.mark.parametrize("e", [*(s[0] for s in STANDARD.values()), *OTHERS], ids=lambda e: e.name)
def test_encoding_is_exact_nearest_even(e):
    levels, values = e.levels(), e.values()
    x = probes(levels)
    if 0 not in levels:
        x = x[x != 0]  # a tie between the two smallest values that no standard decides
    # Evenness of a level is that of its last mantissa bit, which is its code's; of the significand 1 without mantissa.
    codes = np.array([np.flatnonzero(values == level)[0] for level in levels])
    even = codes % 2 == 0 if e.mantissa else (levels > 0) | (levels == 0)  # powers of two: to the larger (2 ulp)
    if e.zero and (not e.mantissa or not e.subnormals):
        even[levels == np.min(levels[levels > 0])] = False  # beside zero: to zero
    expected = levels[nearest_codes(levels, even, x)]
    ours, small = jax.jit(lambda x, small: (e.round(x), e.encode(small)))(x, np.float32([0.0, -0.0, 1e-30, -1e-30]))
    np.testing.assert_array_equal(ours, expected)
    if e.signed and e.subnormals:
        assert small.tolist() == [0, 2 ** (e.bits - 1)] * 2


@pytest.mark.parametrize("e", [*(s[0] for s in STANDARD.values()), E8M0, *OTHERS], ids=lambda e: e.name)
def test_every_finite_code_is_its_own_encoding(e):
    values = e.values()
    finite = np.isfinite(values) & ((np.abs(values) >= np.finfo(np.float32).tiny) | (values == 0))
    if not e.subnormals and e.zero:  # zero has more codes than its own
        finite &= (values != 0) | (codes_of_all(e) % 2 ** (e.bits - 1) == 0)
    codes = codes_of_all(e)[finite]
    np.testing.assert_array_equal(jax.jit(lambda codes: e.encode(e.decode(codes)))(codes), codes)


def test_nan_is_kept_where_there_is_one_and_zero_elsewhere():
    nan = jnp.float32([np.nan, -np.nan])
    for e in (E4M3, E5M2, E8M0, UE5M3):
        assert np.isnan(e.decode(e.encode(nan))).all(), e.name
    for e in (E2M1, E2M3, E3M2):
        assert e.encode(nan).tolist() == [0, 0], e.name


@pytest.mark.parametrize("e", [E2M1, E4M3, UE5M3, Float(3, 4)], ids=lambda e: e.name)
def test_neighbours_enclose(e):
    x = probes(e.levels())
    low, high = map(np.asarray, jax.jit(e.neighbours)(x))
    levels, inside = e.levels(), np.clip(x, e.min, e.max)
    np.testing.assert_array_equal(low, levels[np.searchsorted(levels, inside, "right") - 1])
    np.testing.assert_array_equal(high, levels[np.searchsorted(levels, inside, "left")])


@pytest.mark.parametrize("e", [*(s[0] for s in STANDARD.values()), E8M0, *OTHERS[:-2]], ids=lambda e: e.name)
def test_name_gives_the_element_back(e):
    assert element(e.name) == e
    assert hash(element(e.name)) == hash(e)


@pytest.mark.parametrize(
    "arguments",
    [
        *((0, 3), (5, 11), (2, -1), (8, 0, None, "ieee"), (8, 0, 200), (5, 2, -120), (1, 0, None, "ieee")),
        (4, 3, None, "fnuz", True, False),
    ],
)
def test_impossible_minifloats_are_refused(arguments):
    with pytest.raises(ValueError, match=r"exponent|special|minifloat"):
        Float(*arguments)


def test_known_limits():
    assert [e.max for e in (E4M3, E5M2, E3M2, E2M3, E2M1, UE5M3)] == [448, 57344, 28, 7.5, 6, 114688]
    assert [e.top_exponent for e in (E4M3, E5M2, E3M2, E2M3, E2M1, E8M0)] == [8, 15, 4, 2, 2, 127]
