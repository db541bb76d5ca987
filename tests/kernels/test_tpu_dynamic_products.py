"""Rounding x by rows in front of the integer product, interpreted, against numpy: shapes, hostile rows, races."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax.integer import dynamic_matmul, integer_matmul
from qjax.kernels.tpu import dynamic_products
from qjax.kernels.tpu.tiles import Blocks
from qjax.quantization import dequantize, quantize
from tests import draw


def problem(M, K, N):
    """Rows of bfloat16 at several magnitudes with scales of powers of two, and what they must give, by numpy."""
    rows = np.array(draw.normal(0, M, K)) * 2.0 ** np.arange(M)[:, None]
    x = np.asarray(jnp.asarray(rows, jnp.bfloat16), np.float32)
    w = np.array(draw.integers(1, -128, 128, K, N))
    w[:, 0] = -128
    column = (2.0 ** np.array(draw.integers(2, -3, 3, N))).astype(np.float32)
    largest = np.abs(x).max(1, keepdims=True)
    codes = np.round(x * (np.float32(127) / largest))
    assert (np.abs(codes).max(1) == 127).all()
    sums = codes.astype(np.int64) @ w
    expected = sums.astype(np.float32) * (largest * np.float32(1 / 127)) * column
    return jnp.asarray(x, jnp.bfloat16), jnp.asarray(w, jnp.int8), jnp.asarray(column), expected


@pytest.mark.parametrize(
    ("M", "K", "N", "tiling"),
    [
        (33, 640, 256, Blocks(32, 128, 640)),  # ragged rows; several blocks each way; strips of 128
        (1, 256, 128, None),
        (64, 1024, 256, Blocks(64, 128, 1024)),  # two strips of rows and of columns
    ],
)
def test_equal_to_numpy(M, K, N, tiling):
    *arguments, expected = problem(M, K, N)
    y = dynamic_products.matmul(*arguments, tiling, True)
    assert y.shape == (M, N) and y.dtype == jnp.float32
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    np.testing.assert_array_equal(y, dynamic_products.reference(*arguments))


@pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason=f"the interpreter of races needs jax 0.12: {jax.__version__}"
)
def test_no_races_and_nothing_uninitialised():
    from jax.experimental.pallas import tpu as pltpu

    *arguments, expected = problem(64, 256, 256)
    look = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
    np.testing.assert_allclose(dynamic_products.matmul(*arguments, Blocks(32, 128, 256), look), expected, rtol=1e-6)


def test_hostile_rows_stay_in_their_row():
    x, w, column, _ = problem(6, 256, 128)
    x = x.astype(jnp.float32).at[1, 3].set(jnp.inf).at[2, 5].set(jnp.nan).at[3].set(0).at[4].set(1e-38)
    x = x.at[5].set(3e30)
    y = np.asarray(dynamic_products.matmul(x, w, column * 0 + 2.0**-20, interpret=True))
    assert np.isnan(y[1:3]).all() and (y[3:5] == 0).all()
    assert np.isfinite(y[[0, 5]]).all() and np.abs(y[5]).max() > 1e25
    np.testing.assert_array_equal(y, dynamic_products.reference(x, w, column * 0 + 2.0**-20))


def test_what_does_not_fit_is_refused():
    x, w, column, _ = problem(4, 256, 128)
    assert dynamic_products.matmul(x[:0], w, column).shape == (0, 128)
    assert dynamic_products.reference(x[:0], w, column).shape == (0, 128)
    assert "may overflow int32" in str(dynamic_products.refuse(2**17, 128))
    for arguments, match in (
        ((x, w[:, :100], column[:100]), "100 outputs are no multiple of 128"),
        ((x[:, :200], w[:200], column), "200 inputs are no multiple of 128"),
        ((x, w.astype(jnp.int4), column), "do not fit"),
        ((x, w, column, Blocks(32, 128, 128)), "the whole depth"),
    ):
        with pytest.raises(ValueError, match=match):
            dynamic_products.matmul(*arguments)


def test_public_product_is_that_of_rounded_rows():
    x = jnp.asarray(draw.normal(0, 5, 96))
    w = quantize(jnp.asarray(draw.normal(1, 96, 40)), "int8_f32")
    y = dynamic_matmul(x, w)
    rounded = quantize(x, "int8_narrow_f32", axis=-1)
    # A tie may fall the other way where 1 / scale is rounded first: one code of 96.
    np.testing.assert_allclose(
        y, integer_matmul(rounded, w), atol=float(jnp.abs(x).max() * jnp.abs(dequantize(w)).max()) / 100
    )
    assert dynamic_matmul(x[:0], w).shape == (0, 40)
    np.testing.assert_array_equal(dynamic_matmul(x.reshape(5, 1, 96), w)[:, 0], y)


def test_gradients_pass_straight_to_x():
    x = jnp.asarray(draw.normal(0, 3, 64))
    w = quantize(jnp.asarray(draw.normal(1, 64, 16)), "int8_f32")
    dy = jnp.asarray(draw.normal(2, 3, 16))
    found = jax.grad(lambda x: (dynamic_matmul(x, w) * dy).sum())(x)
    np.testing.assert_allclose(found, dy @ dequantize(w).T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("x", "fmt", "match"),
    [
        (jnp.ones((2, 64)), "int8_g32", "a scale a column"),
        (jnp.ones((2, 64)), "fp8_e4m3", "int8"),
        (jnp.ones((2, 64)), "int8_affine", "int8"),
        (jnp.ones((2, 32)), "int8_f32", "expected"),
        (jnp.ones((2, 64), jnp.int32), "int8_f32", "floating"),
    ],
)
def test_public_refusals(x, fmt, match):
    with pytest.raises(ValueError, match=match):
        dynamic_matmul(x, quantize(jnp.ones((64, 16)), fmt))


def test_named_kernel_that_cannot_run_raises():
    w = quantize(jnp.ones((128, 128)), "int8_f32")
    with pytest.raises(ValueError, match="'mosaic' cannot run: it is compiled for tpu"):
        dynamic_matmul(jnp.ones((2, 128)), w, implementation="mosaic")
