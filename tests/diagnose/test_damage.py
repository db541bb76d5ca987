"""Evenness and damage against numpy, and the claims that go with them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

import qjax
from qjax.diagnose import clip_and_round, crest_factor, damage, effective_levels, flatness, quantization_kernel
from tests import draw

rounded = jax.jit(lambda x, fmt: qjax.dequantize(qjax.quantize(x, fmt, axis=-1)), static_argnums=1)
encoded = jax.jit(lambda x, like, fmt: qjax.encode(qjax.fit(like, fmt, axis=-1), x), static_argnums=2)


def test_flatness_is_the_distance_from_a_flat_curve_and_goes_with_the_error():
    x = np.array(draw.normal(0, 64, 32)) * np.geomspace(0.05, 20, 32, dtype=np.float32)
    found = flatness(jnp.asarray(x))
    d = np.sort(np.sqrt((x.astype(np.float64) ** 2).sum(0)))[::-1]
    g = np.full(32, np.linalg.norm(x) / np.sqrt(32))
    np.testing.assert_allclose(found.curve, d, rtol=1e-5)
    np.testing.assert_allclose(found.distance, np.linalg.norm(d - g) / np.linalg.norm(x), rtol=1e-5)
    lone = np.where(np.arange(32) == 3, np.ones((64, 1), np.float32), 0)
    np.testing.assert_allclose(flatness(jnp.asarray(lone)).distance, np.sqrt(2 - 2 / 32**0.5), rtol=1e-6)
    turned = (x @ scipy.linalg.hadamard(32) / 32**0.5).astype(np.float32)

    def error(x):
        return np.linalg.norm(rounded(jnp.asarray(x), "int4") - x)

    assert flatness(jnp.asarray(turned)).distance < 0.5 * found.distance
    assert error(turned) < 0.7 * error(x)


def test_effective_levels_count_the_codes_of_a_channel():
    sizes = np.array([100.0, 10.0, 1.0, 0.5], np.float32)
    x = np.linspace(-1, 1, 4001, dtype=np.float32)[:, None] * sizes
    used = [len(np.unique(column)) for column in np.asarray(rounded(jnp.asarray(x), "int8_tensor_narrow_f32")).T]
    np.testing.assert_allclose(used, effective_levels(jnp.asarray(np.abs(x).max(0))), atol=2)
    assert crest_factor(jnp.asarray(x[:, 0])).item() == pytest.approx(3**0.5, rel=1e-3)
    assert crest_factor(jnp.asarray([[1e-30, 0.0], [0.0, 0.0]]), axis=-1).tolist() == [pytest.approx(2**0.5), 0]


def test_the_kernel_is_what_lies_within_half_a_step_and_crossquants_is_smaller():
    x = np.array(draw.normal(2, 128, 64)) * np.where(np.arange(64) == 7, 200, 1).astype(np.float32)
    per_token = rounded(jnp.asarray(x), "int8_narrow_f32")
    bound = 0.5 * np.abs(x).max(-1, keepdims=True) / 127
    assert quantization_kernel(per_token).item() == pytest.approx(np.mean(np.abs(x) < bound), abs=1e-3)
    crossed = rounded(jnp.asarray(x), "int8_cross0.15_narrow_f32")
    assert quantization_kernel(crossed) < 0.2 * quantization_kernel(per_token)


@pytest.mark.parametrize("fmt", ["int4_g32_f32", "int3_g32_affine_f32", "fp4_e2m1_g32_f32"])
def test_clipping_and_rounding_add_up_and_trade(fmt):
    x = draw.student(3, 3, 64, 64)
    total, clipped = [], []
    for share in (1.0, 0.5, 0.25):
        q = encoded(x, x * jnp.float32(share), fmt)
        parts = clip_and_round(x, q)
        np.testing.assert_allclose(sum(parts), np.mean((np.asarray(qjax.dequantize(q)) - x) ** 2), rtol=1e-4)
        clipped.append(float(parts.clipped))
        total.append(float(parts.rounded))
    assert clipped[0] < clipped[1] < clipped[2] and total[0] > 2 * total[1] > 4 * total[2]


def test_the_parts_are_those_of_a_clip_by_hand_and_rounding_follows_the_uniform_model():
    x = draw.normal(4, 64, 256)
    step = np.float32(0.05)
    q = encoded(x, jnp.full((64, 256), 7.0 * step), "int4_narrow_f32")
    parts = clip_and_round(x, q)
    clipped = np.clip(np.asarray(x, np.float64), -7 * step, 7 * step)
    np.testing.assert_allclose(parts.clipped, np.mean((x - clipped) ** 2), rtol=1e-4)
    inside = np.abs(np.asarray(x)) <= 7 * step
    np.testing.assert_allclose(parts.rounded, inside.mean() * step**2 / 12, rtol=0.05)
    with pytest.raises(ValueError, match=r"x has shape \(64, 255\) and q \(64, 256\)"):
        clip_and_round(x[:, 1:], q)


def test_damage_at_every_site():
    x = draw.normal(5, 6, 10)
    y = jnp.asarray(x + 0.1 * np.asarray(draw.normal(6, 6, 10)))
    found = damage({"a": y}, {"a": x})["a"]
    a, b = np.asarray(x, np.float64), np.asarray(y, np.float64)
    np.testing.assert_allclose(found.sqnr, 10 * np.log10((a**2).sum() / ((a - b) ** 2).sum()), rtol=1e-4)
    np.testing.assert_allclose(found.mse, ((a - b) ** 2).mean(), rtol=1e-4)
    np.testing.assert_allclose(found.cosine, (a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b), rtol=1e-5)
    p, q = (np.exp(z) / np.exp(z).sum(-1, keepdims=True) for z in (a, b))
    np.testing.assert_allclose(found.kl, (p * np.log(p / q)).sum(-1).mean(), rtol=1e-3)
    with pytest.raises(ValueError, match=r"\['b', 'c'\] have a value on one side only"):
        damage({"a": x, "b": x}, {"a": x, "c": x})
