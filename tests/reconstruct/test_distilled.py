"""Distilled data have the moments asked for, in every layer at once, and give the ranges of the data themselves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from qjax.reconstruct import distill


def measure(p, x):
    first = x @ p["a"]
    return [x, first, jax.nn.relu(first) @ p["b"]]


def test_two_layers_get_their_moments():
    """Of data the descent never saw: every moment within a few percent, and the ranges of the deepest layer with it."""
    rng = np.random.default_rng(0)
    p = {n: jnp.asarray(rng.normal(size=(6, 6)) / 2, jnp.float32) for n in "ab"}
    unseen = jnp.asarray(rng.laplace(0.5, 1.0, (512, 6)) * np.linspace(0.5, 2, 6), jnp.float32)
    moments = [(jnp.mean(a, 0), jnp.std(a, 0)) for a in measure(p, unseen)]
    x = jax.random.normal(jax.random.key(0), (256, 6))
    found = distill(measure, p, x, moments, optimizer=optax.adam(0.05), steps=400, key=jax.random.key(1))
    assert found.loss < 1e-3 * found.before
    for a, (mean, std) in zip(measure(p, found.variables), moments, strict=True):
        np.testing.assert_allclose(jnp.mean(a, 0), mean, atol=0.05)
        np.testing.assert_allclose(jnp.std(a, 0), std, rtol=0.05)
    by_hand = sum(
        float(jnp.sum((jnp.mean(a, 0) - m) ** 2) + jnp.sum((jnp.sqrt(jnp.var(a, 0) + 1e-6) - s) ** 2))
        for a, (m, s) in zip(measure(p, x), moments, strict=True)
    )
    assert float(found.before) == pytest.approx(by_hand, rel=1e-4)
    with pytest.raises(ValueError, match="give two for each"):
        distill(measure, p, x, moments[:2], key=jax.random.key(1))
