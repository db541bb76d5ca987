"""The Blackwell kernel: the layout of its scales; itself interpreted, and lowered for the chip, from jax 0.12 on."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from qjax.kernels.aot import gpu
from qjax.kernels.gpu import block_scaled
from qjax.kernels.gpu.block_scaled import Tiles
from tests.kernels import mosaic_gpu

E2M1, E4M3, E8M0 = jnp.float4_e2m1fn, jnp.float8_e4m3fn, jnp.float8_e8m0fnu
K = 512
FORMATS = {"nvfp4": (E2M1, E4M3, 16), "mxfp4": (E2M1, E8M0, 32), "mxfp8": (E4M3, E8M0, 32)}


def operand(seed, rows, K, fmt):
    """Codes, scales and values of a matrix whose products are few bits wide, so that every order of sums is exact."""
    codes, scale, block = FORMATS[fmt]
    random = np.random.default_rng(seed)
    values = random.choice([-6, -3, -1.5, -0.5, 0, 0.5, 1, 2, 4], (rows, K))
    scales = 2.0 ** random.integers(-3, 4, (rows, K // block))
    dense = values * np.repeat(scales, block, 1)
    return jnp.asarray(values, jnp.float32).astype(codes), jnp.asarray(scales, jnp.float32).astype(scale), dense


def test_scales_lie_where_the_tensor_core_reads_them():
    scale = np.arange(256 * 8).reshape(256, 8).astype(np.float32)
    packed = np.asarray(block_scaled.pack(jnp.asarray(scale)[:200]))
    assert packed.shape == (2, 2, 32, 16)
    for r, g in ((0, 0), (5, 3), (33, 4), (127, 7), (128, 1), (199, 6)):
        assert packed[r // 128, g // 4, r % 32, r % 128 // 32 * 4 + g % 4] == scale[r, g]
    back = np.asarray(block_scaled.unpack(jnp.asarray(packed)))
    assert (back[:200] == scale[:200]).all() and (back[200:] == 1).all()


@mosaic_gpu.needed
@pytest.mark.parametrize(
    ("fmt", "M", "K", "N", "tiling"),
    [
        ("nvfp4", 5, 192, 256, Tiles(64, 2, 1)),  # two tiles of outputs, more steps than buffers
        ("mxfp8", 130, 256, 128, Tiles(128, 2, 2)),  # two tiles of rows, the second ragged; the depth split
    ],
)
def test_exact_where_sums_are_and_no_races(fmt, M, K, N, tiling):
    (x, x_scale, left), (w, w_scale, right) = operand(0, M, K, fmt), operand(1, N, K, fmt)
    scales = block_scaled.pack(x_scale), block_scaled.pack(w_scale)
    y = block_scaled.matmul(x, w, *scales, tiling, mosaic_gpu.interpreter())
    assert y.shape == (M, N) and y.dtype == jnp.float32
    assert (np.asarray(y) == left @ right.T).all()
    assert (np.asarray(block_scaled.reference(x, w, *scales)) == left @ right.T).all()


@mosaic_gpu.needed
@pytest.mark.parametrize("fmt", FORMATS)
def test_lowers_for_blackwell_without_its_packages(fmt):
    codes, scale, _ = FORMATS[fmt]
    packed = block_scaled.packed_shape(128, K, scale), scale
    shapes = ((16, K), codes), ((128, K), codes), packed, packed
    assert "mosaic_gpu" in gpu.lower(gpu.GPUS["B200"], block_scaled.matmul, *shapes).as_text()


def test_tiles_divide_what_they_cut():
    for M, depth, N in ((1, 4096, 4096), (2048, 4096, 4096), (16, 576, 128), (16, 8192, 28672)):
        tiling = block_scaled.tiles(M, depth, N, E2M1, E4M3)
        assert depth % (tiling.step * tiling.splits) == 0 and tiling.step % 64 == 0
        assert tiling.splits == 1 or tiling.splits * (N // 128) * -(-M // 128) <= block_scaled.RESIDENT


def test_what_does_not_fit_raises():
    x, w, s = jnp.zeros((2, K), E2M1), jnp.zeros((128, K), E2M1), jnp.ones((1, 8, 32, 16), E4M3)
    assert block_scaled.matmul(x[:0], w, s[:0], s).shape == (0, 128)
    for arguments, match in (
        ((x, w[:100], s, s), "100 outputs are no multiple of 128"),
        ((x[:, :96], w[:, :96], s, s), "96 inputs are no multiple of 64"),
        ((x, w[:, :256], s, s), "both operands have one depth"),
        ((x, w, s[:, :4], s), "scales are to be"),
        ((x.astype(E4M3), w.astype(E4M3), s, s), "no product takes float8_e4m3fn codes under float8_e4m3fn scales"),
        ((x.astype(jnp.bfloat16), w.astype(jnp.bfloat16), s, s), "no product takes bfloat16 codes"),
        ((x, w, s, s, Tiles(256, 2, 4)), "do not divide 512"),
    ):
        with pytest.raises(ValueError, match=match):
            block_scaled.matmul(*arguments)
