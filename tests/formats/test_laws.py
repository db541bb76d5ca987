"""Numbers that go through a law before they are coded: fourth roots of one, and S2FP8."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from qjax.codebooks import from_fourth_roots, to_fourth_roots
from qjax.formats import from_s2fp8, pack, to_s2fp8, unpack


def test_the_nearest_root_by_phase_under_least_squares_scales():
    rng = np.random.default_rng(0)
    z = (rng.normal(size=(64, 5)) + 1j * rng.normal(size=(64, 5)) * [1, 1, 3, 0.1, 0]).astype(np.complex64)
    roots = jax.jit(to_fourth_roots, static_argnums=2)(z.real, z.imag, (0,))
    codes = np.asarray(roots.codes)
    np.testing.assert_array_equal(
        codes, np.argmin(np.abs(z[..., None] / np.abs(z[..., None]) - 1j ** np.arange(4)), -1)
    )
    real, imaginary = map(np.asarray, from_fourth_roots(roots))
    got = real + 1j * imaginary
    for column in range(5):
        even = codes[:, column] % 2 == 0
        for part, scale in ((even, np.asarray(roots.real)), (~even, np.asarray(roots.imaginary))):
            x, y = z[part, column], got[part, column]
            if part.any():
                basis = 1j ** codes[part, column].astype(int)
                best = np.real(np.vdot(basis, x)) / part.sum()
                np.testing.assert_allclose(scale[0, column], best, rtol=1e-5)
                np.testing.assert_allclose(y, basis * best, rtol=1e-5, atol=1e-6)
            else:
                assert scale[0, column] == 0
    np.testing.assert_array_equal(unpack(pack(codes.T, 2), 2, 64), codes.T)


def test_edges_of_phases_belong_to_the_next_root():
    # Counterclockwise from -pi/4, each on the edge where the next root's phases begin; then zero.
    x, y = np.float32([1, 1, -1, -1, 0, -0.0]), np.float32([-1, 1, 1, -1, 0, 0])
    assert to_fourth_roots(jnp.asarray(x), jnp.asarray(y)).codes.tolist() == [0, 1, 2, 3, 0, 0]
    with pytest.raises(ValueError, match="one shape"):
        to_fourth_roots(jnp.ones(3), jnp.ones(4))


def test_s2fp8_is_the_papers_law():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(8, 4096)) * np.exp2(rng.integers(-30, 30, (8, 1)) + rng.normal(size=(8, 4096)) * 2)
    x[:, ::7] = 0
    x = x.astype(np.float32)
    q = jax.jit(jax.vmap(to_s2fp8))(x)
    back = np.asarray(jax.jit(jax.vmap(from_s2fp8))(q))
    for i, row in enumerate(x.astype(np.float64)):
        log = np.log2(np.abs(row[row != 0]))
        alpha = 15 / (log.max() - log.mean())
        beta = -alpha * log.mean()
        np.testing.assert_allclose(q.squeeze[i], alpha, rtol=1e-5)
        np.testing.assert_allclose(q.shift[i], beta, rtol=1e-5, atol=1e-5)
        y = np.sign(row) * 2.0**beta * np.abs(row) ** alpha
        codes = y.astype(ml_dtypes.float8_e5m2)
        ours = np.asarray(q.codes[i])
        assert np.mean(ours != codes.view(np.uint8)) < 1e-3  # a tie that float32's logarithm sees on the other side
        values = ours.view(ml_dtypes.float8_e5m2).astype(np.float64)
        np.testing.assert_allclose(values, y, rtol=0.126, atol=2.0**-17 * 1.01)
        expected = np.sign(values) * (np.abs(values) * 2.0**-beta) ** (1 / alpha)
        np.testing.assert_allclose(back[i], expected, rtol=1e-4)


def test_s2fp8_of_hostile_tensors():
    def there_and_back(*values: float) -> list[float]:
        return from_s2fp8(to_s2fp8(jnp.float32(values))).tolist()

    assert there_and_back(0.0, -0.0, 0.0) == [0, 0, 0]
    np.testing.assert_allclose(there_and_back(-3.0, 3.0, 0.0), [-3, 3, 0], rtol=1e-6)
    # Squeezed to an eighth, an error of one part in eight of y is one of a factor 2.6 of x.
    wide = np.array(there_and_back(3.3e38, -1.0, 1e-36)) / [3.3e38, -1.0, 1e-36]
    assert abs(wide[0] - 1) < 1e-3 and 0.4 < wide[1] < 2.6 and 0.2 < wide[2] < 5
    assert np.isfinite(there_and_back(np.inf, 1.0, 2.0)).all()
    assert np.isnan(there_and_back(np.nan, 1.0, 2.0)).all()
