"""Arrays of real size, padding, and scales at the end of their range; hostile numbers are next door."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from qjax.quantization import bits_per_weight, check, dequantize, quantize


def ramp(n: int = 32) -> np.ndarray:
    """[n, 3] values in [-1, 1] whose extremes are the ends."""
    return np.stack([np.linspace(-1, 1, n), np.linspace(1, -0.5, n), np.linspace(0.1, 1, n)], axis=1).astype(np.float32)


@pytest.mark.parametrize("name", ["int4_g32", "int3_g32_affine", "nf4_g32"])
def test_a_nan_shows_in_an_array_of_real_size(name):
    """XLA:CPU's max over more than a few thousand values passes over a NaN."""
    w = np.ones((512, 32), np.float32)
    w[77, 3] = np.nan
    assert np.isnan(dequantize(quantize(jnp.asarray(w), name))[77, 3])


@pytest.mark.parametrize("name", ["int4_g64", "int3_g64_affine", "nf4_g64", "mxfp4", "nvfp4"])
def test_a_ragged_axis_is_padded_and_recorded(name):
    w = jnp.asarray(ramp(70))
    q = quantize(w, name)
    check(q)
    block = q.meta.block[0]
    assert q.meta.padding == (-70 % block, 0) and q.shape == (70, 3)
    np.testing.assert_allclose(dequantize(q), w, atol=0.26)
    # The full blocks know nothing of the padding (but for an outer level, which sees the last block's scale).
    whole = 70 // block * block
    if isinstance(q.scales[0], jnp.ndarray):
        np.testing.assert_array_equal(dequantize(q)[:whole], dequantize(quantize(w[:whole], name)))
    assert bits_per_weight(q) > bits_per_weight(quantize(w[:64], name))


def test_float16_scales_saturate_instead_of_overflowing():
    big, small = jnp.full((32, 1), 1e6), jnp.full((32, 1), 1e-9)
    for w in (big, small):
        q = quantize(w, "int4_g32_f16")
        check(q)
        assert q.scales[0].dtype == jnp.float16
    assert float(dequantize(quantize(big, "int4_g32_f16")).max()) == 65504 * 7


def test_a_scale_far_below_the_tensor_scale_is_not_zero():
    w = np.concatenate([np.full((16, 1), 1.0), np.full((16, 1), 2.0**-30)]).astype(np.float32)
    q = quantize(jnp.asarray(w), "nvfp4")
    check(q)
    assert int(q.scales[0].codes[1, 0]) == 1


@pytest.mark.parametrize("name", ["nvfp4", "mxfp4", "int4_g64"])
def test_small_weights_keep_their_precision(name):
    """NVFP4 without a tensor scale returns zeros at this size in other libraries."""
    w = jnp.asarray(np.random.default_rng(0).normal(size=(64, 4)).astype(np.float32))
    exact = dequantize(quantize(w, name))
    np.testing.assert_array_equal(dequantize(quantize(w * 2.0**-20, name)), exact * 2.0**-20)
