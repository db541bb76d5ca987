"""A Hadamard transform fused with rounding and product, interpreted, against numpy: shapes, hostile rows, races."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from qjax.integer import dynamic_matmul
from qjax.kernels.tpu import dynamic_products, hadamard
from qjax.kernels.tpu.tiles import Blocks
from qjax.operators import Hadamard
from qjax.operators.maps.hadamard import hadamard_factors, paley
from qjax.quantization import dequantize, quantize
from tests import draw


def matrix(size):
    """+-1 [size, size] in float64: Paley's first, and SciPy's of a power of two."""
    first = next(m for m in (1, 12, 20, 28) if size % m == 0 and (size // m) & (size // m - 1) == 0)
    return np.kron(paley(first), scipy.linalg.hadamard(size // first))


def problem(M, K, N, size, dtype=jnp.bfloat16):
    """Whole numbers as x, so that every sum is exact; signs, codes, scales, and what they must give, by numpy."""
    x = np.array(draw.integers(0, -9, 10, M, K), np.float64)
    signs = 2 * np.array(draw.integers(1, 0, 2, K)) - 1
    w = np.array(draw.integers(2, -128, 128, K, N))
    column = (2.0 ** np.array(draw.integers(3, -3, 3, N))).astype(np.float32)
    z = ((x * signs).reshape(M, K // size, size) @ matrix(size)).reshape(M, K)
    largest = np.abs(z).max(1, keepdims=True).astype(np.float32)
    codes = np.round(z.astype(np.float32) * (np.float32(127) / largest))
    expected = (codes.astype(np.int64) @ w).astype(np.float32) * (largest / 127 / np.sqrt(size)) * column
    given = jnp.asarray(x, dtype), jnp.asarray(w, jnp.int8), jnp.asarray(column)
    return *given, jnp.asarray(signs, jnp.int8), expected


@pytest.mark.parametrize(
    ("M", "K", "N", "size", "dtype", "tiling"),
    [
        (1, 256, 128, 128, jnp.bfloat16, None),  # two blocks, and nothing but the matrix unit
        (33, 1024, 256, 512, jnp.bfloat16, Blocks(32, 128, 1024)),  # ragged rows; a butterfly of four, twice
        (3, 2048, 128, 2048, jnp.float32, None),  # of eight and of two
        (2, 1536, 128, 1536, jnp.bfloat16, None),  # Paley's of twelve
        (2, 3072, 128, 3072, jnp.bfloat16, None),  # and a butterfly beside it
    ],
)
def test_equal_to_numpy(M, K, N, size, dtype, tiling):
    x, w, column, signs, expected = problem(M, K, N, size, dtype)
    assert dynamic_products.refuse(K, N, size=size) is None
    y = dynamic_products.matmul(x, w, column, tiling, True, signs, size)
    assert y.shape == (M, N) and y.dtype == jnp.float32
    np.testing.assert_allclose(y, expected, rtol=1e-6)
    np.testing.assert_array_equal(y, dynamic_products.reference(x, w, column, signs, size))


def test_fractions_are_never_rounded_to_bfloat16():
    """Rotated values at float32's precision: the identity as weight gives the codes back, and none is off by one."""
    K = 256
    x = jnp.asarray(draw.normal(0, 16, K), jnp.bfloat16)
    z = np.asarray(x, np.float64) @ matrix(K)
    largest = np.abs(z).max(1, keepdims=True)
    y = dynamic_products.matmul(x, jnp.eye(K, dtype=jnp.int8), jnp.ones(K), interpret=True, size=K)
    exact = z * 127 / largest
    codes = np.asarray(y) / (largest / 127 / 16)
    tie = np.abs(np.abs(exact - np.floor(exact)) - 0.5) < 1e-4
    np.testing.assert_allclose(codes[~tie], np.round(exact)[~tie], atol=1e-3)
    assert tie.mean() < 1e-3


@pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason=f"the interpreter of races needs jax 0.12: {jax.__version__}"
)
def test_no_races_and_nothing_uninitialised():
    from jax.experimental.pallas import tpu as pltpu

    x, w, column, signs, expected = problem(40, 512, 256, 512)
    look = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2, out_of_bounds_reads="raise")
    y = dynamic_products.matmul(x, w, column, Blocks(32, 128, 512), look, signs, 512)
    np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_hostile_rows_stay_in_their_row():
    x, w, column, signs, _ = problem(8, 256, 128, 256)
    x = x.astype(jnp.float32).at[1, 3].set(jnp.inf).at[2, 5].set(jnp.nan).at[3].set(0).at[4].set(1e-38)
    x = x.at[5].set(2.0**100).at[6].set(3e38)
    y = np.asarray(dynamic_products.matmul(x, w, column * 0 + 2.0**-20, None, True, signs, 256))
    assert np.isnan(y[[1, 2, 6]]).all() and (y[3:5] == 0).all()
    assert np.isfinite(y[[0, 5, 7]]).all() and np.abs(y[5]).max() > 1e25
    np.testing.assert_array_equal(y, dynamic_products.reference(x, w, column * 0 + 2.0**-20, signs, 256))


def test_what_does_not_fit_is_refused():
    x, w, column, signs, _ = problem(4, 256, 128, 256)
    assert dynamic_products.matmul(x[:0], w, column, size=256).shape == (0, 128)
    for K, size, match in (
        (1152, 576, "576 channels are 36 x 16"),
        (256, 64, "64 channels are 1 x 64"),
        (384, 256, "256 channels do not divide 384"),
        (36 * 128, 36 * 128, "a factor of 36"),
    ):
        assert match in str(dynamic_products.refuse(K, 128, size=size))
    assert dynamic_products.refuse(14336, 128, size=14336) is None  # 28 * 512
    with pytest.raises(ValueError, match="do not fit: blocks of 64 channels"):
        dynamic_products.matmul(x, w, column, size=64)
    with pytest.raises(ValueError, match="go with a size"):
        dynamic_products.matmul(x, w, column, signs=signs)


@pytest.mark.parametrize("size", [1, 2, 64, 512, 24, 576])
def test_sylvester_factors_are_the_matrix_of_the_kernel(size):
    """Paley's matrix of the odd part, then SciPy's; the same for the map, whatever the size."""
    whole = functools.reduce(np.kron, hadamard_factors(size, sylvester=True))
    np.testing.assert_allclose(whole @ whole.T, np.eye(size), atol=1e-5)
    if size != 576:
        np.testing.assert_allclose(whole * np.sqrt(size), matrix(size), atol=1e-5)
    x = draw.normal(0, 3, size)
    turned = Hadamard(None, size, sylvester=True).apply(jnp.asarray(x))
    np.testing.assert_allclose(turned, x @ whole, atol=1e-5)
    np.testing.assert_allclose(
        hadamard.reference(jnp.asarray(x), None, size) * hadamard.shrink(size), turned, atol=1e-5
    )


@pytest.mark.parametrize("rotation", [Hadamard(None, 48), Hadamard.random(jax.random.key(0), 96, 32, sylvester=True)])
def test_public_product_is_that_of_turned_rows(rotation):
    x = jnp.asarray(draw.normal(0, 5, 96))
    w = quantize(jnp.asarray(draw.normal(1, 96, 16)), "int8_f32")
    y = dynamic_matmul(x, w, rotation=rotation)
    np.testing.assert_array_equal(y, dynamic_matmul(rotation.apply(x), w))
    np.testing.assert_array_equal(jax.jit(dynamic_matmul)(x, w, rotation=rotation), y)
    dy = jnp.asarray(draw.normal(2, 5, 16))
    found = jax.grad(lambda x: (dynamic_matmul(x, w, rotation=rotation) * dy).sum())(x)
    np.testing.assert_allclose(found, rotation.transpose().apply(dy @ dequantize(w).T), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("rotation", "match"),
    [
        (Hadamard(None, 128), "it is compiled for tpu"),
        (Hadamard(None, 96), "blocks of 96"),
        (Hadamard(jnp.ones((2, 128), jnp.int8), 128), "batch axes"),
    ],
)
def test_named_kernel_that_cannot_turn_raises(rotation, match):
    w = quantize(jnp.ones((128, 128)), "int8_f32")
    with pytest.raises(ValueError, match=match):
        dynamic_matmul(jnp.ones((2, 128)), w, rotation=rotation, implementation="mosaic")


def test_why_a_rotation_is_left_to_xla(monkeypatch):
    monkeypatch.setattr("qjax.integer.dynamic_inputs.refuse_platform", lambda platform: None)
    w = quantize(jnp.ones((256, 128)), "int8_f32")
    for rotation, match in (
        (Hadamard(None, 256), "not Sylvester's"),
        (Hadamard(None, 256, sylvester=True, backwards=True), "an inverse"),
        (Hadamard(None, 64, sylvester=True), "64 channels"),
    ):
        with pytest.raises(ValueError, match=match):
            dynamic_matmul(jnp.ones((2, 256)), w, rotation=rotation, implementation="mosaic")
