"""The scales of signs and ternary numbers: the authors' equations, least squares, hostile blocks."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from qjax.quantization import dequantize, quantize
from qjax.ranges import absmean


def weights() -> np.ndarray:
    w = np.random.default_rng(0).normal(0.2, 1.0, (44, 6))  # the last group of 16 is padded
    w[:16, 0], w[16:32, 1] = 0.0, 0.5
    return w.astype(np.float32)


def groups(*arrays: np.ndarray):
    for rows in np.split(np.arange(44), (16, 32)):
        for column in range(6):
            yield tuple(np.asarray(a, np.float64)[rows, column] for a in arrays)


def test_signs_under_their_mean_magnitude_are_least_squares():
    w = weights()
    for x, got in groups(w, np.asarray(dequantize(quantize(jnp.asarray(w), "binary_g16_f32", range=absmean)))):
        alpha = np.abs(x).mean()
        np.testing.assert_allclose(got, np.where(x >= 0, alpha, -alpha), rtol=2e-6, atol=2e-38)
        if x.any():
            best = min(((x - np.sign(x) * a) ** 2).sum() for a in np.linspace(0, 3, 601))
            assert ((x - got) ** 2).sum() <= best * (1 + 1e-6)


def test_signs_around_a_mean():
    w = weights()
    for x, got in groups(w, np.asarray(dequantize(quantize(jnp.asarray(w), "int1_g16_minimum_f32", range=absmean)))):
        mean = x.mean()
        alpha = np.abs(x - mean).mean()
        expected = mean + alpha * np.where(x - mean > 1e-6, 1, -1)
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-6)


def test_ternary_is_bitnets():
    w = weights()
    for x, got in groups(w, np.asarray(dequantize(quantize(jnp.asarray(w), "int2_g16_narrow_f32", range=absmean)))):
        gamma = np.abs(x).mean()
        expected = np.clip(np.rint(x / (gamma or 1.0)), -1, 1) * gamma
        np.testing.assert_allclose(got, expected, rtol=2e-6)


@pytest.mark.parametrize("name", ["binary_g16_f32", "int1_g16_minimum_f32", "int2_g16_narrow_f32"])
def test_hostile_blocks(name):
    w = weights()
    w[:, 2] *= np.float32(1e-36)
    w[:, 3] *= np.float32(1e38)
    w[3, 4], w[3, 5] = np.inf, np.nan
    got = np.asarray(dequantize(quantize(jnp.asarray(w), name, range=absmean)))
    assert np.isnan(got[:16, 5]).all() and np.isfinite(got[:, :5]).all() and np.isfinite(got[16:]).all()
    assert (np.abs(got[:, 2]).max() > 1e-37) and got[3, 4] > 1e38
    np.testing.assert_allclose(np.abs(got[:, 3]).max(), 1e38, rtol=0.6)


@pytest.mark.parametrize("name", ["int4_g16", "int2_g16", "int1_g16_affine", "int4_g16_affine"])
def test_other_formats_are_refused(name):
    with pytest.raises(ValueError, match="absmean is for"):
        quantize(jnp.ones((16, 1)), name, range=absmean)
