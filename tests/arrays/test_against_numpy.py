"""Every named format against a loop in numpy, bit for bit, on data full of ties."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax import formats
from qjax.formats import E2M1, E4M3, FULL, NF4, Float, Format, Int
from qjax.quantization import check, dequantize, quantize
from tests.reference import quantize_numpy

NAMES = [
    *("int8", "int4_g64", "int4_g32_narrow_f32", "int4_g32_signed_f16", "int3_g64_affine", "int2_g32_affine_f32"),
    *("int1_g32", "int5_tensor_f32", "int8_tensor_affine", "fp8_e4m3", "fp8_e5m2_tensor", "fp6_e3m2_g32", "nvfp4"),
    *("nf4_g16", "nf4_g64_f32", "mxint8", "mxfp6_e3m2", "mxfp6_e2m3_even", "mxfp8_e4m3_rceil", "mxfp8_e5m2"),
    *(f"mxfp4_{rule}" for rule in ("floor", "rceil", "even", "ceil")),
]
OTHERS = [
    Format(E4M3, 16, 8, "float32"),
    Format(Int(4), FULL, FULL, "float16", "half"),
    Format(E2M1, 16, scale="float8_e4m3fn"),
    Format(Float(3, 2, signed=True), 32, scale="float8_e8m0fnu", rule="ceil"),
    Format(NF4, 64, 4, "bfloat16"),
]


def weights() -> np.ndarray:
    """[64, 16]: normal columns of many sizes, exact ties of several grids, a column of zeros and single spikes."""
    rng = np.random.default_rng(0)
    w = rng.normal(size=(64, 16)) * np.exp2(rng.integers(-9, 9, 16))
    w[:, 1] = rng.integers(-15, 16, 64) / 2  # halves under absmax 7.5: ties of int4
    w[:, 2] = rng.choice([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, 6.0, 7.0], 64)  # ties of e2m1
    w[:, 3] = 0
    w[:32, 4] = 0
    w[5, 5], w[40, 6] = 300.0, -7.5
    w[:, 7] = np.abs(w[:, 7])
    return w.astype(np.float32)


@pytest.mark.parametrize("fmt", [*NAMES, *OTHERS], ids=lambda f: f if isinstance(f, str) else formats.describe(f)[:40])
def test_bit_for_bit(fmt):
    w = weights()
    q = quantize(jnp.asarray(w), fmt)
    check(q)
    np.testing.assert_array_equal(dequantize(q), quantize_numpy.quantize(w, formats.as_format(fmt)))


@pytest.mark.parametrize("name", ["int4_g64", "nvfp4", "mxfp4", "nf4_g64"])
def test_the_other_axis_is_the_transpose(name):
    w = jnp.asarray(weights().T)
    q = quantize(w, name, axis=-1)
    np.testing.assert_array_equal(dequantize(q), dequantize(quantize(w.T, name)).T)
    assert q.meta.block == (quantize(w.T, name).meta.block)[::-1]


def test_half_precision_keeps_its_dtype_and_is_quantized_in_float32():
    w = jnp.asarray(weights()).astype(jnp.bfloat16)
    q = quantize(w, "int4_g64_f32")
    assert q.dtype == jnp.bfloat16 and dequantize(q).dtype == jnp.bfloat16
    expected = quantize_numpy.quantize(np.asarray(w).astype(np.float32), formats.parse("int4_g64_f32"))
    np.testing.assert_array_equal(dequantize(q), jnp.asarray(expected).astype(jnp.bfloat16))


def test_tensor_scales_are_per_batch_entry():
    w = jnp.stack([jnp.asarray(weights()), 3 * jnp.asarray(weights())])
    q = quantize(w, "nvfp4", batch_axes=1)
    assert q.scales[0].scales[0].shape == (2, 1, 1)
    for i in range(2):
        np.testing.assert_array_equal(dequantize(q)[i], dequantize(quantize(w[i], "nvfp4")))


def test_eager_arithmetic_equals_compiled():
    w = jnp.asarray(weights())
    for name in ("int3_g64_affine", "nf4_g64", "nvfp4"):
        with jax.disable_jit():
            eager = quantize(w, name)
        compiled = quantize(w, name)
        jax.tree.map(np.testing.assert_array_equal, eager, compiled)
