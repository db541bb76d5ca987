"""Zeros, tiny and huge numbers, infinities, NaN and padding: defined results for every kind of format."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from qjax.quantization import bits_per_weight, check, dequantize, quantize

KINDS = ["int4_g32", "int3_g32_affine", "int4_g32_signed", "nf4_g32", "nf4_g32_f32", "nvfp4", "mxfp4", "mxint8"]
KINDS += ["fp8_e4m3", "mxfp8_e5m2"]


def ramp(n: int = 32) -> np.ndarray:
    """[n, 3] values in [-1, 1] whose extremes are the ends."""
    return np.stack([np.linspace(-1, 1, n), np.linspace(1, -0.5, n), np.linspace(0.1, 1, n)], axis=1).astype(np.float32)


@pytest.mark.parametrize("name", KINDS)
def test_zeros_stay_zeros(name):
    q = quantize(jnp.zeros((64, 3)), name)
    check(q)
    np.testing.assert_array_equal(dequantize(q), 0)
    mixed = jnp.asarray(np.concatenate([np.zeros((32, 3), np.float32), ramp()]))
    q = quantize(mixed, name)
    check(q)
    np.testing.assert_array_equal(dequantize(q)[:32], 0)
    assert float(jnp.max(jnp.abs(dequantize(q) - mixed))) < 0.2


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("size", [1e-36, 1e-30, 1e-3, 1e30, 3e38])
def test_no_magnitude_is_lost(name, size):
    w = (ramp() * np.float32(size)).astype(np.float32)
    q = quantize(jnp.asarray(w), name)
    check(q)
    error = np.abs(np.asarray(dequantize(q), np.float64) - w).max() / size
    # A range wider than float32 saturates: an affine grid of 3e38 may lose up to half of the extreme values.
    assert error < (0.6 if size == 3e38 and "affine" in name else 0.26), error


@pytest.mark.parametrize("name", KINDS)
def test_infinities_saturate(name):
    w = ramp()
    w[3, 0], w[5, 1] = np.inf, -np.inf
    q = quantize(jnp.asarray(w), name)
    check(q)
    back = np.asarray(dequantize(q))
    assert np.isfinite(back).all()
    assert back[3, 0] > 1e37 and back[5, 1] < -1e37
    if name not in ("nvfp4", "nf4_g32"):  # an outer level reaches for the infinity, too
        np.testing.assert_allclose(back[:, 2], w[:, 2], atol=0.2)


@pytest.mark.parametrize("name", KINDS)
def test_a_nan_shows(name):
    w = ramp(64)
    w[3, 0] = np.nan
    q = quantize(jnp.asarray(w), name)
    back = np.asarray(dequantize(q))
    assert np.isnan(back[3, 0])
    with pytest.raises(ValueError, match="scales"):
        check(q, "layers/0/q")
    if name not in ("nvfp4", "nf4_g32"):  # with an outer level the whole tile is lost, visibly
        assert np.isfinite(back[:, 1:]).all()


@pytest.mark.parametrize("name", ["int4_g32", "int3_g32_affine", "nf4_g32"])
def test_a_nan_shows_in_an_array_of_real_size(name):
    """XLA:CPU's max over more than a few thousand values passes over a NaN."""
    w = np.ones((512, 32), np.float32)
    w[77, 3] = np.nan
    assert np.isnan(dequantize(quantize(jnp.asarray(w), name))[77, 3])


def test_codes_of_a_nan_block_are_valid():
    w = jnp.full((32, 1), jnp.nan)
    for name in KINDS:
        codes = quantize(w, name).codes
        assert codes.dtype in (jnp.int8, jnp.uint8)


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
