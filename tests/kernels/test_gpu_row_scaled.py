"""The Hopper kernel of codes with codes: itself interpreted, and lowered for the chip, from jax 0.12 on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from qjax.kernels.aot import gpu
from qjax.kernels.gpu import codings, row_scaled, transposed
from qjax.kernels.gpu.transposed import Tiles
from tests import draw
from tests.kernels import mosaic_gpu

CODES = {"int8": np.int8, "fp8": ml_dtypes.float8_e4m3fn}


def problem(M, K, N, codes, low=-8, high=9):
    """Whole numbers and power-of-two scales, so that every order of summation is exact in float32."""
    x, w, x_steps, w_steps = (
        np.array(draw.integers(seed, *ends))
        for seed, ends in enumerate(((low, high, M, K), (low, high, K, N), (-3, 3, M), (-3, 3, N)))
    )
    expected = (x @ w) * 2.0 ** (x_steps[:, None] + w_steps)
    stored = jnp.asarray(w.astype(CODES[codes]).view(np.uint8))
    stored = codings.pack(stored, transposed.depth(K), codings.E4M3)
    left, right = jnp.asarray(x.astype(CODES[codes])), jax.lax.bitcast_convert_type(stored, jnp.dtype(CODES[codes]))
    return left, right, *(jnp.asarray(2.0**steps, jnp.float32) for steps in (x_steps, w_steps)), expected


@mosaic_gpu.needed
@pytest.mark.parametrize(
    ("codes", "M", "K", "N", "tiling"),
    [
        ("int8", 9, 192, 64, Tiles(64, 8, 2, 1)),  # two tiles of rows, the second ragged; more steps than buffers
        ("int8", 5, 512, 128, Tiles(64, 8, 2, 2, 1, 2)),  # two steps a turn, two tiles of outputs, the depth split
        ("fp8", 9, 256, 128, Tiles(128, 8, 2, 1, 2)),  # two warpgroups multiply, a third copies
        ("fp8", 5, 512, 64, Tiles(64, 8, 2, 4)),
    ],
)
def test_exact_where_sums_are_and_no_races(codes, M, K, N, tiling):
    *operands, expected = problem(M, K, N, codes)
    y = row_scaled.matmul(*operands, tiling, mosaic_gpu.interpreter())
    assert y.shape == (M, N) and y.dtype == jnp.float32
    assert (np.asarray(y) == expected).all()
    assert (np.asarray(row_scaled.reference(*operands)) == expected).all()


@mosaic_gpu.needed
@pytest.mark.parametrize("splits", [1, 2])
def test_sums_of_integers_are_whole_beyond_what_float32_holds(splits):
    """2^24, then one more in each of two steps: added up in float32 both would be lost."""
    M, K, N = 8, 1280, 64
    x, w = np.full((M, K), -128, np.int8), np.full((K, N), -128, np.int8)
    x[:, 1024:], w[1024:] = 0, 0
    x[:, [1151, 1279]], w[[1151, 1279]] = 1, 1
    packed = codings.pack(jnp.asarray(w), 128, codings.INT8)
    scales, tiling = (jnp.ones(M), jnp.ones(N)), Tiles(64, 8, 2, splits)
    y = row_scaled.matmul(jnp.asarray(x), packed, *scales, tiling, mosaic_gpu.interpreter())
    assert (np.asarray(y) == 2**24 + 2).all()


@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize(
    ("M", "K", "N", "tiling"),
    [
        (1, 4096, 4096, None),
        (16, 576, 1536, None),
        (64, 4096, 4096, None),
        (100, 1536, 576, None),  # the second tile of rows is ragged
        (300, 2048, 2048, None),
        (2048, 4096, 4096, None),
        (256, 1024, 256, Tiles(128, 128, 4, 2, 2)),
    ],
)
def test_exact_on_a_chip_and_the_same_every_time(M, K, N, tiling, codes):
    mosaic_gpu.skip_without("9.0")
    *operands, expected = problem(M, K, N, codes, -2, 3)  # products of 128 codes need less than 14 bits
    f = jax.jit(lambda *operands: row_scaled.matmul(*operands, tiling))
    for _ in range(20):  # a race would show in some of them
        assert (np.asarray(f(*operands)) == expected).all()


@mosaic_gpu.needed
@pytest.mark.parametrize("codes", CODES)
@pytest.mark.parametrize("M", [16, 512])
def test_lowers_for_hopper_without_its_packages(M, codes):
    K, N, step = 576, 192, 64
    scales = ((M,), jnp.float32), ((N,), jnp.float32)
    shapes = ((M, K), CODES[codes]), ((K // step, N, step), CODES[codes]), *scales
    assert "mosaic_gpu" in gpu.lower(gpu.GPUS["H100"], row_scaled.matmul, *shapes).as_text()


def test_what_does_not_fit_raises():
    x, w = jnp.ones((2, 256), jnp.int8), jnp.ones((2, 64, 128), jnp.int8)
    rows, columns = jnp.ones(2), jnp.ones(64)
    assert row_scaled.matmul(x[:0], w, rows[:0], columns).shape == (0, 64)
    for arguments, match in (
        ((x, w[:, :50], rows, columns[:50]), "50 outputs are no multiple of 64"),
        ((x, w.astype(jnp.float8_e4m3fn), rows, columns), "codes of both are int8 or both float8_e4m3fn"),
        ((x.astype(jnp.int16), w.astype(jnp.int16), rows, columns), "codes of both are int8"),
        ((x[:, :128], w, rows, columns), "a step of 64 or 128"),
        ((x, w, rows, rows), r"scales are to be \(2,\) and \(64,\)"),
        ((x, w, rows, columns, Tiles(64, 8, 2, 3)), "do not divide"),
    ):
        with pytest.raises(ValueError, match=match):
            row_scaled.matmul(*arguments)
