"""Integers and tables: every code, every tie, and learned tables."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from qjax.codebooks import normal_float
from qjax.formats import NF4, Int, Table, element
from tests.reference.elements_exact import nearest_codes, probes

INTS = [
    Int(bits, narrow, signed)
    for bits in (*range(1, 10), 12, 16)
    for narrow, signed in ((False, True), (True, True), (False, False))
    if not (narrow and bits == 1)
]
SKEWED = Table("skewed", (-3.0, -1.0, 0.0, 0.25, 4.0))


@pytest.mark.parametrize("e", INTS, ids=lambda e: e.name)
def test_integers_round_half_to_even_and_saturate(e):
    x = probes(e.levels())
    there_and_back = jax.jit(lambda x, values: (e.encode(x), e.decode(e.encode(x)), e.encode(values)))
    codes, decoded, stored = there_and_back(np.append(x, np.float32(np.nan)), e.values())
    expected = np.append(np.clip(np.rint(x.astype(np.float64)), e.min, e.max), 0)
    np.testing.assert_array_equal(codes, expected)
    assert codes.dtype == e.code_dtype
    np.testing.assert_array_equal(decoded, expected)
    assert element(e.name) == e
    # Values are in the order of bit patterns.
    kept = e.values() >= e.min
    np.testing.assert_array_equal(np.asarray(stored).astype(np.int64)[kept] % 2**e.bits, np.arange(2**e.bits)[kept])
    assert e.levels()[0] == e.min and e.levels()[-1] == e.max


@pytest.mark.parametrize("e", [NF4, SKEWED, Table("wide", tuple(np.arange(-30, 31) / 7.0))], ids=lambda e: e.name)
def test_tables_are_exact_nearest_with_ties_to_even(e):
    x = probes(e.levels())
    run = jax.jit(lambda x, values: (e.encode(x), e.decode(e.encode(x)), e.encode(values)))
    codes, decoded, own = map(np.asarray, run(np.append(x, np.float32(np.nan)), e.values()))
    np.testing.assert_array_equal(codes[:-1], nearest_codes(e.values(), np.arange(len(e.values())) % 2 == 0, x))
    np.testing.assert_array_equal(decoded, e.values()[codes])
    np.testing.assert_array_equal(own, np.arange(len(e.values())))
    assert decoded[-1] == e.levels()[np.argmin(np.abs(e.levels()))]


def test_a_learned_table_replaces_the_values_per_batch_entry():
    rng = np.random.default_rng(0)
    table = np.sort(rng.normal(size=(3, 5)).astype(np.float32), axis=-1)
    x, wide = rng.normal(size=(3, 4, 6)).astype(np.float32), table[:, None, None]

    @jax.jit
    def run(x, wide):
        codes = SKEWED.encode(x, wide)
        return codes, SKEWED.decode(codes, wide), jax.vmap(SKEWED.encode)(x, wide)

    codes, values, one = run(x, wide)
    expected = np.argmin(np.abs(x[..., None] - table[:, None, None, :]), axis=-1)
    np.testing.assert_array_equal(codes, expected)
    decoded = np.take_along_axis(table, expected.reshape(3, -1), axis=1).reshape(3, 4, 6)
    np.testing.assert_array_equal(values, decoded)
    np.testing.assert_array_equal(codes, one)


@pytest.mark.parametrize("e", [Int(4), SKEWED, NF4], ids=lambda e: e.name)
def test_neighbours_enclose(e):
    x = probes(e.levels())
    low, high = map(np.asarray, jax.jit(e.neighbours)(x))
    levels, inside = e.levels(), np.clip(x, e.min, e.max)
    np.testing.assert_array_equal(low, levels[np.searchsorted(levels, inside, "right") - 1])
    np.testing.assert_array_equal(high, levels[np.searchsorted(levels, inside, "left")])


def test_nf4_levels_are_the_published_ones():
    # The table in bitsandbytes, to every bit.
    published = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635]
    published += [-0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725]
    published += [0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941]
    published += [0.7229568362236023, 1.0]
    np.testing.assert_array_equal(np.float32(normal_float(4)), np.float32(published))
    assert len(normal_float(3)) == 8 and 0.0 in normal_float(3)


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: Int(0), "bits"),
        (lambda: Int(17), "bits"),
        (lambda: Int(1, narrow=True), "narrow"),
        (lambda: Int(4, narrow=True, signed=False), "narrow"),
        (lambda: Table("t", (1.0,)), "2..65536"),
        (lambda: Table("t", (1.0, 0.0)), "ascending"),
        (lambda: Table("t", (-1.0, float("nan"))), "finite"),
        (lambda: Table("t", (-2.0, -1.0)), "above zero"),
        (lambda: normal_float(1), "2 bits"),
        (lambda: element("f9m9"), "close names"),
        (lambda: element("int17"), "int8"),
    ],
)
def test_bad_elements_say_what_is_wrong(make, word):
    with pytest.raises(ValueError, match=word):
        make()
