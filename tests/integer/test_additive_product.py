"""L-Mul against its equation in exact arithmetic, and the paper's comparison with FP8."""

from __future__ import annotations

from fractions import Fraction

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from qjax.integer import additive_matmul, additive_product


def equation(x: float, y: float, mantissa: int) -> float:
    """One product by the paper's equation 2, with the carry of an adder of (exponent, mantissa)."""
    (fx, ex), (fy, ey) = np.frexp(abs(x)), np.frexp(abs(y))
    l_of_m = {1: 1, 2: 2, 3: 3, 4: 3}.get(mantissa, 4)
    total = Fraction(float(2 * fx - 1)) + Fraction(float(2 * fy - 1)) + Fraction(1, 2**l_of_m)
    carry, rest = divmod(total, 1)
    return float(np.sign(x) * np.sign(y) * (1 + rest) * Fraction(2) ** int(ex + ey - 2 + carry))


@pytest.mark.parametrize("mantissa", [1, 3, 4, 6])
def test_every_pair_of_mantissas_is_the_equation(mantissa):
    grid = (1 + np.arange(2**mantissa) / 2**mantissa).astype(np.float32)
    x, y = np.meshgrid(grid * np.float32(2.0**-7), -grid * np.float32(2.0**20))
    ours = np.asarray(additive_product(jnp.asarray(x), jnp.asarray(y), mantissa))
    assert ours.ravel().tolist() == [equation(a, b, mantissa) for a, b in zip(x.ravel(), y.ravel(), strict=True)]


def test_operands_are_rounded_to_their_mantissas_first():
    x = np.random.default_rng(0).normal(size=4000).astype(np.float32)
    kept = x.astype(ml_dtypes.bfloat16).astype(np.float32)
    y = np.roll(x, 1)
    ours, theirs = (additive_product(jnp.asarray(v), jnp.asarray(y), 7) for v in (x, kept))
    np.testing.assert_array_equal(ours, theirs)


def test_the_ends():
    big, tiny = np.float32(2.0**127), np.float32(2.0**-126)
    x = jnp.asarray([0, -0.0, 1e-40, big, big, tiny, tiny, np.inf, np.nan, np.inf, 2.0**-100], jnp.float32)
    y = jnp.asarray([3, 3, 3, big, -4, tiny, 0.25, -2, 1, 0, 2.0**100], jnp.float32)
    expected = [0, -0.0, 0, np.inf, -np.inf, 0, 0, -np.inf, np.nan, np.nan, 1.125]
    np.testing.assert_array_equal(additive_product(x, y, 3), np.asarray(expected, np.float32))


def test_three_bits_beat_e5m2_and_four_lie_between_it_and_e4m3():
    """Mean error of products of normal numbers; the paper claims the first, and for four bits to be near E4M3."""
    x, y = np.random.default_rng(1).normal(size=(2, 20000)).astype(np.float32)
    exact = x.astype(np.float64) * y

    def error(product) -> float:
        return float(np.mean(np.abs(np.asarray(product, np.float64) - exact)) / np.mean(np.abs(exact)))

    def fp8(dtype):
        return x.astype(dtype).astype(np.float64) * y.astype(dtype).astype(np.float64)

    three, four = (error(additive_product(jnp.asarray(x), jnp.asarray(y), m)) for m in (3, 4))
    e5m2, e4m3 = error(fp8(ml_dtypes.float8_e5m2)), error(fp8(ml_dtypes.float8_e4m3fn))
    assert e4m3 < four < three < e5m2


def test_a_matrix_product_adds_them():
    x, w = (np.random.default_rng(s).normal(size=shape).astype(np.float32) for s, shape in ((2, (3, 9)), (3, (9, 4))))
    each = additive_product(*jnp.broadcast_arrays(jnp.asarray(x)[:, :, None], jnp.asarray(w)[None]), 4)
    ours = additive_matmul(jnp.asarray(x), jnp.asarray(w), 4)
    np.testing.assert_allclose(ours, np.asarray(each).sum(1), rtol=1e-6, atol=1e-6)


def test_bad_input_is_refused():
    one = jnp.ones(2)
    with pytest.raises(ValueError, match="mantissa 0"):
        additive_product(one, one, 0)
    with pytest.raises(ValueError, match="shapes"):
        additive_product(one, one[:1], 3)
    with pytest.raises(TypeError, match="bfloat16"):
        additive_product(one.astype(jnp.bfloat16), one, 3)
