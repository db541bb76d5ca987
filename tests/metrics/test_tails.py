"""Kurtosis against scipy, and KURE's penalty: weights trained by it have no tails."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from qjax.formats import Int
from qjax.metrics import kurtosis, kurtosis_penalty


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_kurtosis_is_scipys(scale):
    x = np.random.default_rng(0).laplace(size=(5, 400)).astype(np.float32)
    ours = kurtosis(jnp.asarray(x * np.float32(scale)), axis=-1)
    np.testing.assert_allclose(ours, stats.kurtosis(x.astype(np.float64), axis=-1, fisher=False), rtol=1e-4)
    assert float(kurtosis(jnp.full(7, 3.0))) == 1


def test_trained_weights_are_uniform_and_lose_less_at_four_bits():
    w = jnp.asarray(np.random.default_rng(1).normal(size=2000).astype(np.float32))
    before = float(kurtosis_penalty([w, w]))
    assert before == pytest.approx((float(kurtosis(w)) - 1.8) ** 2, rel=1e-5)
    gradient = jax.jit(jax.grad(lambda w: kurtosis_penalty([w])))

    def step(w, _):
        return w - 20 * gradient(w), None

    trained, _ = jax.jit(lambda w: jax.lax.scan(step, w, length=400))(w)
    assert float(kurtosis(trained)) == pytest.approx(1.8, abs=0.02)

    def least_error(w) -> float:
        """Of int4 under the best of many steps, relative to the variance."""
        steps = jnp.linspace(0.1, 0.6, 40, dtype=jnp.float32)[:, None] * jnp.std(w)
        rounded = Int(4).round(w[None] / steps) * steps
        return float(jnp.min(jnp.mean((rounded - w[None]) ** 2, axis=1)) / jnp.var(w))

    assert least_error(trained) < 0.5 * least_error(w)


def test_nothing_to_penalize_is_refused():
    with pytest.raises(ValueError, match="at least one weight"):
        kurtosis_penalty([])
