"""Dyadic rescaling against Python's integers, which have no width."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax.rounding import Dyadic, dyadic, rescale

MODES = ("half_up", "half_away", "half_even", "floor")


def exactly(acc: np.ndarray, b: np.ndarray, c: np.ndarray, mode: str) -> np.ndarray:
    """acc * b / 2^c rounded, by unbounded integers, saturated to int32."""
    product = acc.astype(object) * b.astype(object)
    c = c.astype(object)
    half = np.array([(1 << n) >> 1 for n in c], object)
    if mode == "half_up":
        value = (product + half) >> c
    elif mode == "floor":
        value = product >> c
    else:
        size = np.abs(product)
        value, rest = size >> c, size - ((size >> c) << c)
        tie = (rest == half) & (c > 0)
        value = value + (rest > half) * (c > 0) + tie * (value % 2 == 1 if mode == "half_even" else 1)
        value = np.where(product < 0, -value, value)
    return np.clip(value, -(2**31), 2**31 - 1).astype(np.int64)


run = jax.jit(lambda acc, m: {mode: rescale(acc, m, mode) for mode in MODES})


def test_every_short_accumulator_and_edges_of_int32():
    rng = np.random.default_rng(0)
    edges = np.array([2**31 - 1, -(2**31), 2**30, -(2**30), 2**24 + 1, -(2**31) + 1])
    acc = np.concatenate([np.arange(-(2**15), 2**15), edges, rng.integers(-(2**31), 2**31, 2**14)])
    b = np.concatenate([rng.integers(0, 64, 2**15), rng.integers(0, 2**31, len(acc) - 2**15)])
    c = np.concatenate([rng.integers(0, 8, 2**15), rng.integers(0, 63, len(acc) - 2**15)])
    got = run(jnp.asarray(acc, jnp.int32), Dyadic(jnp.asarray(b, jnp.int32), jnp.asarray(c, jnp.int32)))
    for mode in MODES:
        np.testing.assert_array_equal(got[mode], exactly(acc, b, c, mode), err_msg=mode)


def test_int8_requantization_is_the_real_one():
    """As a layer does it: int32 sums times s_x s_w / s_y a channel, against exact rational arithmetic."""
    rng = np.random.default_rng(1)
    real = np.exp(rng.uniform(-12, 0, 16)).astype(np.float32)
    acc = rng.integers(-(2**20), 2**20, (500, 16))
    got = run(jnp.asarray(acc, jnp.int32), jax.jit(dyadic)(jnp.asarray(real[None])))["half_even"]
    np.testing.assert_array_equal(got, np.rint(acc * real.astype(np.float64)))


@pytest.mark.parametrize("bits", [2, 8, 24, 31])
def test_the_multiplier_is_the_nearest_of_its_width(bits):
    m = np.exp2(np.random.default_rng(2).uniform(-25, 1, 2000)).astype(np.float32)
    m = np.concatenate([m, np.float32([1.0, 1.999999, 0.0])])
    got = jax.jit(dyadic, static_argnums=1)(jnp.asarray(m), bits)
    b, c = np.asarray(got.b, np.float64), np.asarray(got.c)
    assert (b < 2.0**bits).all() and (b[:-1] >= 2.0 ** (bits - 1)).all() and b[-1] == 0
    wanted = m.astype(np.float64)
    assert (np.abs(np.ldexp(b, -c) - wanted) <= np.ldexp(0.5, -c)).all()
    if bits >= 24:
        np.testing.assert_array_equal(np.ldexp(b, -c), wanted)


def test_bad_input():
    with pytest.raises(ValueError, match="bits must be"):
        dyadic(jnp.ones(1), 32)
    for bad in (-1.0, np.nan, np.inf, 300.0):
        with pytest.raises(ValueError, match="is not a number"):
            dyadic(jnp.array([0.5, bad]), 8)
    with pytest.raises(TypeError, match="int32"):
        rescale(jnp.ones(1), dyadic(jnp.ones(1)))
    with pytest.raises(ValueError, match="mode 'up'"):
        rescale(jnp.ones(1, jnp.int32), dyadic(jnp.ones(1)), "up")
