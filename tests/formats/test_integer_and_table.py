"""Integers and tables: every code, every tie, and learned tables."""

from __future__ import annotations

import jax
import jax.numpy as jnp
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
    codes = np.asarray(jax.jit(e.encode)(x))
    expected = np.clip(np.rint(x.astype(np.float64)), e.min, e.max)
    np.testing.assert_array_equal(codes, expected)
    assert codes.dtype == e.code_dtype
    np.testing.assert_array_equal(e.decode(codes), expected)
    np.testing.assert_array_equal(e.encode(jnp.float32([np.nan])), [0])
    assert element(e.name) == e


@pytest.mark.parametrize("e", INTS, ids=lambda e: e.name)
def test_values_are_in_the_order_of_bit_patterns(e):
    values = e.values()
    patterns = np.arange(2**e.bits)
    stored = np.asarray(e.encode(values)).astype(np.int64) % 2**e.bits
    kept = values >= e.min
    np.testing.assert_array_equal(stored[kept], patterns[kept])
    assert e.levels()[0] == e.min and e.levels()[-1] == e.max


@pytest.mark.parametrize("e", [NF4, SKEWED, Table("wide", tuple(np.arange(-30, 31) / 7.0))], ids=lambda e: e.name)
def test_tables_are_exact_nearest_with_ties_to_even(e):
    x = probes(e.levels())
    codes = np.asarray(jax.jit(e.encode)(x))
    np.testing.assert_array_equal(codes, nearest_codes(e.values(), np.arange(len(e.values())) % 2 == 0, x))
    np.testing.assert_array_equal(jax.jit(e.decode)(codes), e.values()[codes])
    np.testing.assert_array_equal(e.encode(e.values()), np.arange(len(e.values())))
    assert e.decode(e.encode(jnp.float32([np.nan])))[0] == e.levels()[np.argmin(np.abs(e.levels()))]


def test_a_learned_table_replaces_the_values_per_batch_entry():
    key = jax.random.key(0)
    table = jnp.sort(jax.random.normal(key, (3, 5)), axis=-1)
    x = jax.random.normal(jax.random.key(1), (3, 4, 6))
    wide = table[:, None, None]
    codes = SKEWED.encode(x, wide)
    expected = np.argmin(np.abs(np.asarray(x)[..., None] - np.asarray(table)[:, None, None, :]), axis=-1)
    np.testing.assert_array_equal(codes, expected)
    decoded = np.take_along_axis(np.asarray(table), expected.reshape(3, -1), axis=1).reshape(3, 4, 6)
    np.testing.assert_array_equal(SKEWED.decode(codes, wide), decoded)
    one = jax.vmap(SKEWED.encode)(x, wide)
    np.testing.assert_array_equal(codes, one)


@pytest.mark.parametrize("e", [Int(4), SKEWED, NF4], ids=lambda e: e.name)
def test_neighbours_enclose(e):
    x = probes(e.levels())
    low, high = map(np.asarray, e.neighbours(x))
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
