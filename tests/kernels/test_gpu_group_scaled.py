"""The Hopper kernel of narrow weights: layouts everywhere; itself interpreted, and lowered, from jax 0.12 on."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from qjax import dispatch
from qjax.kernels.aot import gpu
from qjax.kernels.gpu import codings, group_scaled
from qjax.kernels.gpu.codings import E4M3, INT4, INT8
from qjax.kernels.gpu.group_scaled import Tiles
from qjax.operators.explanation import choices
from qjax.operators.packed import pack
from qjax.operators.preparation import prepare, unpack
from qjax.operators.wgmma_words import E4M3_BYTES, INT8_BYTES, NAME, run
from qjax.quantization import dequantize, quantize
from tests import draw
from tests.kernels import mosaic_gpu

CODINGS = (INT4, INT8, E4M3)


def problem(M, K, N, group, coding=INT4):
    """Small integers and power-of-two scales, so that every order of summation and bfloat16 itself are exact."""
    x, codes, steps = (
        np.array(draw.integers(seed, low, high, *shape))
        for seed, (low, high, *shape) in enumerate(((-4, 5, M, K), (-8, 8, K, N), (-3, 3, K // group, N)))
    )
    codes[:16, 0] = np.arange(-8, 8)
    if coding == INT8:
        codes[16:48, 1] = np.arange(-128, 128, 8)
    scale = 2.0**steps
    expected = x @ (codes * np.repeat(scale, group, 0))
    stored = codes.astype(ml_dtypes.float8_e4m3fn).view(np.uint8) if coding == E4M3 else codes
    words = codings.pack(
        jnp.asarray(stored.astype(np.uint8 if coding == E4M3 else np.int8)), group_scaled.depth(group), coding
    )
    return jnp.asarray(x, jnp.bfloat16), words, jnp.asarray(scale, jnp.float32), expected


@mosaic_gpu.needed
@pytest.mark.parametrize(
    ("M", "K", "N", "group", "tiling", "coding"),
    [
        (5, 512, 128, 256, Tiles(64, 8, 2, 2), INT4),  # two tiles of outputs, two steps a group, the depth split
        (9, 192, 64, 64, Tiles(64, 8, 2, 1), INT4),  # two tiles of rows, the second ragged; more steps than buffers
        (9, 512, 128, 128, Tiles(128, 8, 2, 1, 2), INT4),  # two warpgroups multiply, a third copies
        (5, 512, 64, 256, Tiles(64, 8, 2, 2, 1, 2), INT8),  # two steps a turn, one group
        (9, 768, 64, 128, Tiles(64, 16, 2, 1, 1, 2), INT4),  # a group a step
        (9, 192, 64, 64, Tiles(64, 8, 2, 1), E4M3),
        (9, 256, 128, 256, Tiles(128, 8, 2, 1, 2), E4M3),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_exact_where_sums_are_and_no_races(M, K, N, group, tiling, coding):
    x, words, scale, expected = problem(M, K, N, group, coding)
    y = group_scaled.matmul(x, words, scale, tiling, mosaic_gpu.interpreter(), coding=coding)
    assert y.shape == (M, N) and y.dtype == jnp.float32
    assert (np.asarray(y) == expected).all()
    assert (np.asarray(group_scaled.reference(x, words, scale, coding)) == expected).all()


@pytest.mark.parametrize("coding", CODINGS, ids=[coding.name for coding in CODINGS])
@pytest.mark.parametrize(
    ("M", "K", "N", "group", "tiling"),
    [
        (1, 4096, 4096, 128, None),
        (16, 4096, 4096, 4096, None),  # a scale an output
        (16, 576, 1536, 64, None),
        (100, 1536, 576, 64, None),  # the second tile of rows is ragged
        (64, 8192, 1024, 256, None),
        (300, 2048, 2048, 128, None),
        (2048, 4096, 4096, 128, None),
        (5, 512, 128, 256, Tiles(64, 8, 2, 2)),
        (9, 192, 64, 64, Tiles(64, 8, 2, 1)),
        (16, 8192, 128, 128, Tiles(64, 16, 6, 32)),
        (256, 1024, 128, 128, Tiles(128, 64, 2, 1)),
        (256, 1024, 256, 1024, Tiles(128, 128, 4, 2, 2)),
        (64, 4096, 4096, 128, None),  # two steps a turn
        (64, 1024, 256, 1024, Tiles(64, 64, 2, 2, 1, 2)),
    ],
)
def test_exact_on_a_chip_and_the_same_every_time(M, K, N, group, tiling, coding):
    mosaic_gpu.skip_without("9.0")
    x, words, scale, expected = problem(M, K, N, group, coding)
    f = jax.jit(lambda *operands: group_scaled.matmul(*operands, tiling, coding=coding))
    for _ in range(20):  # a race would show in some of them
        assert (np.asarray(f(x, words, scale)) == expected).all()
    y = group_scaled.matmul(x, words, scale, tiling, dtype=jnp.bfloat16, coding=coding)
    assert (y == jnp.asarray(expected).astype(jnp.bfloat16)).all()


@mosaic_gpu.needed
@pytest.mark.parametrize("coding", CODINGS, ids=[coding.name for coding in CODINGS])
@pytest.mark.parametrize(("M", "group"), [(16, 128), (512, 64)])
def test_lowers_for_hopper_without_its_packages(M, group, coding):
    K, N, step = 576 * 2, 192, group_scaled.depth(group)
    words = (K // step, N, step // coding.lanes), coding.dtype
    f = functools.partial(group_scaled.matmul, coding=coding)
    lowered = gpu.lower(gpu.GPUS["H100"], f, ((M, K), jnp.bfloat16), words, ((K // group, N), jnp.float32))
    assert "mosaic_gpu" in lowered.as_text()


def test_tiles_fill_the_chip_and_divide_what_they_cut():
    for M in (1, 16, 64, 100, 2048):
        for K, N, group in ((4096, 4096, 128), (576, 192, 64), (8192, 28672, 128)):
            tiling = group_scaled.tiles(M, K, N, group)
            assert N % tiling.outputs == 0 and K // group_scaled.depth(group) % tiling.splits == 0
            assert tiling.outputs // tiling.warpgroups * tiling.rows <= 64 * 128  # two accumulators of 64 registers
            assert tiling.splits == 1 or 8 * tiling.splits * M <= K
            assert K // group_scaled.depth(group) // tiling.splits % tiling.turn == 0
            assert tiling.turn == (2 if M == 64 and N == 4096 else 1)
    assert group_scaled.tiles(64, 3072, 4096, 384).turn == 1  # a turn of two would end within a group
    x, words, scale = jnp.ones((2, 768), jnp.bfloat16), jnp.ones((6, 64, 16), jnp.int32), jnp.ones((2, 64))
    with pytest.raises(ValueError, match="groups of 384 end within a turn of 256"):
        group_scaled.matmul(x, words, scale, Tiles(64, 8, 2, 1, 1, 2))


def test_shapes_that_do_not_fit_raise():
    x, words, scale = jnp.ones((2, 256), jnp.bfloat16), jnp.ones((2, 64, 16), jnp.int32), jnp.ones((2, 64))
    assert group_scaled.matmul(x[:0], words, scale).shape == (0, 64)
    for arguments, match in (
        ((x, words[:, :50], scale[:, :50]), "50 outputs are no multiple of 64"),
        ((x, words, jnp.ones((8, 64))), "groups of 32 along 256 are no multiple of 64"),
        ((x, words, jnp.ones((4, 64))), "do not fit"),
        ((x[:, :128], words, scale), "do not fit"),
        ((x, words, scale, Tiles(128, 8)), "do not divide"),
        ((x, words, scale, Tiles(64, 8, 2, 3)), "do not divide"),
        ((x, words, scale, Tiles(64, 8, 2, 1, 2)), "do not divide"),
        ((x, words, scale, Tiles(64, 8, 2, 2, 1, 2)), "do not divide"),
        ((x, words, scale, Tiles(64, 8, 2, 1, 4)), "one warpgroup multiplies or two do"),
        ((x, words, scale, None, False, jnp.float32, INT8), "w8a16 takes words of int8, not int32"),
    ):
        with pytest.raises(ValueError, match=match):
            group_scaled.matmul(*arguments)


FORMATS = {
    "int4_g64": "gpu.wgmma_words.1",
    "int3_g128": "gpu.wgmma_words.1",
    "int8_g64": "gpu.wgmma.int8.1",
    "int6_g128": "gpu.wgmma.int8.1",
    "int8_channel": "gpu.wgmma.int8.1",
    "int8_tensor": "gpu.wgmma.int8.1",
    "fp8_e4m3": "gpu.wgmma.e4m3.1",
    "fp8_e4m3_g128": "gpu.wgmma.e4m3.1",
}


@pytest.mark.parametrize("fmt", FORMATS)
def test_layout_is_exact_and_explain_says_why_not(fmt):
    q = quantize(jnp.asarray(draw.normal(0, 256, 64)), fmt)
    p = prepare({"w": q}, target="gpu")["w"]
    assert p.layout == FORMATS[fmt] and p.shape == q.shape
    back = unpack({"w": p})["w"]
    assert back.codes.dtype == q.codes.dtype and bool((back.codes == q.codes).all())
    (told,) = choices(p, tokens=1)
    assert told.implementation == "dequantize" and dict(told.refused)["wgmma"] == "it is compiled for gpu, not cpu"
    why = dict(choices(p, platform="gpu")[0].refused)["wgmma"]
    assert ("bfloat16" if jax.__version_info__ >= (0, 12) else "needs jax 0.12") in why
    with pytest.raises(ValueError, match="'wgmma' cannot run"):
        dispatch.matmul(jnp.ones((1, 256), jnp.bfloat16), p, implementation="wgmma")


@mosaic_gpu.needed
@pytest.mark.parametrize("fmt", ["int4_g64", "int8_g64", "int8_tensor", "fp8_e4m3_g64"])
def test_kernel_reads_the_layout(fmt):
    K = 192 if "tensor" in fmt else 160  # padded to three groups
    q = quantize(jnp.asarray(draw.normal(0, K, 64)), fmt)
    p = prepare({"w": q}, target="gpu")["w"]
    x = jnp.asarray(draw.normal(1, 2, 3, K)).astype(jnp.bfloat16)
    expected = np.asarray(x, np.float32) @ np.asarray(dequantize(q))
    np.testing.assert_allclose(run(x, p, jnp.float32, mosaic_gpu.interpreter()), expected, atol=1e-4)


def test_layouts_refuse_what_the_kernel_cannot_hold():
    w = jnp.asarray(draw.normal(0, 128, 128))
    for fmt, layout, match in (
        ("int4_g64_affine", NAME, "uint4"),
        ("int4_g32", NAME, "no multiple of 64"),
        ("int8", NAME, "int8 codes do not fit int4"),
        ("int8_affine", INT8_BYTES, "uint8 codes do not fit int8"),
        ("int8_t32x32", INT8_BYTES, "do not lie along the inputs alone"),
        ("fp8_e5m2", E4M3_BYTES, "e5m2 is not e4m3"),
    ):
        with pytest.raises(ValueError, match=match):
            pack(quantize(w, fmt), layout)
    q = quantize(w, "fp8_e4m3")
    with pytest.raises(ValueError, match="a code of it is NaN, which the kernel would take for 480"):
        pack(dataclasses.replace(q, codes=q.codes.at[3, 4].set(jnp.uint8(255))), E4M3_BYTES)


@pytest.mark.parametrize("coding", CODINGS, ids=[coding.name for coding in CODINGS])
def test_gradients_are_those_of_the_reference(coding):
    x, words, scale, _ = problem(4, 64, 64, 64, coding)
    kept, dy = (x, words, scale), jnp.ones((4, 64))
    dx, dwords, dscale = group_scaled._backward(None, False, jnp.float32, coding, kept, dy)
    codes = np.asarray(coding.decode(codings.unpack(words, coding, "uint8" if coding == E4M3 else "int8")))
    assert dwords.dtype == jax.dtypes.float0
    np.testing.assert_allclose(np.asarray(dx, np.float32), np.broadcast_to((codes * scale).sum(1), (4, 64)), rtol=1e-2)
    np.testing.assert_allclose(dscale[0], (np.asarray(x, np.float32) @ codes).sum(0), rtol=1e-6)
