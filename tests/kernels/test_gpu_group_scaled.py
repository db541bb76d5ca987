"""The Hopper kernel: its layout everywhere; itself interpreted, and lowered for the chip, from jax 0.12 on."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax import dispatch
from qjax.kernels.aot import gpu
from qjax.kernels.gpu import group_scaled
from qjax.kernels.gpu.group_scaled import Tiles
from qjax.operators.explanation import choices
from qjax.operators.packed import pack
from qjax.operators.preparation import prepare, unpack
from qjax.operators.wgmma_words import NAME, run
from qjax.quantization import dequantize, quantize
from tests import draw
from tests.kernels import mosaic_gpu


def problem(M, K, N, group):
    """Small integers and power-of-two scales, so that every order of summation and bfloat16 itself are exact."""
    x, codes, steps = (
        np.array(draw.integers(seed, low, high, *shape))
        for seed, (low, high, *shape) in enumerate(((-4, 5, M, K), (-8, 8, K, N), (-3, 3, K // group, N)))
    )
    codes[:16, 0] = np.arange(-8, 8)
    scale = 2.0**steps
    expected = x @ (codes * np.repeat(scale, group, 0))
    words = group_scaled.pack(jnp.asarray(codes, jnp.int8), group_scaled.depth(group))
    return jnp.asarray(x, jnp.bfloat16), words, jnp.asarray(scale, jnp.float32), expected


@pytest.mark.parametrize("step", [64, 128])
def test_words_hold_every_code_where_the_docstring_says(step):
    codes = np.array(draw.integers(0, -8, 8, 2, 2 * step, 64))
    words = group_scaled.pack(jnp.asarray(codes, jnp.int8), step)
    assert words.shape == (2, 2, 64, step // 8) and words.dtype == jnp.int32
    assert (np.asarray(group_scaled.unpack(words, "int8")) == codes).all()
    bits = np.asarray(words).view(np.uint32)
    for i, j in ((0, 0), (1, 3), (3, step // 8 - 1)):
        first = 2 * (j + i * step // 8)
        for nibble, k in ((i, first), (i + 4, first + 1)):
            assert (bits[1, 1, :, j] >> (4 * nibble) & 15 == codes[1, step + k] & 15).all()


@mosaic_gpu.needed
@pytest.mark.parametrize(
    ("M", "K", "N", "group", "tiling"),
    [
        (5, 512, 128, 256, Tiles(64, 8, 2, 2)),  # two tiles of outputs, two steps a group, the depth split
        (9, 192, 64, 64, Tiles(64, 8, 2, 1)),  # two tiles of rows, the second ragged; more steps than buffers
        (9, 512, 128, 128, Tiles(128, 8, 2, 1, 2)),  # two warpgroups multiply, a third copies
    ],
)
def test_exact_where_sums_are_and_no_races(M, K, N, group, tiling):
    x, words, scale, expected = problem(M, K, N, group)
    y = group_scaled.matmul(x, words, scale, tiling, mosaic_gpu.interpreter())
    assert y.shape == (M, N) and y.dtype == jnp.float32
    assert (np.asarray(y) == expected).all()
    assert (np.asarray(group_scaled.reference(x, words, scale)) == expected).all()


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
    ],
)
def test_exact_on_a_chip_and_the_same_every_time(M, K, N, group, tiling):
    mosaic_gpu.skip_without("9.0")
    x, words, scale, expected = problem(M, K, N, group)
    f = jax.jit(lambda *operands: group_scaled.matmul(*operands, tiling))
    for _ in range(20):  # a race would show in some of them
        assert (np.asarray(f(x, words, scale)) == expected).all()
    y = group_scaled.matmul(x, words, scale, tiling, dtype=jnp.bfloat16)
    assert (y == jnp.asarray(expected).astype(jnp.bfloat16)).all()


@mosaic_gpu.needed
def test_words_lie_in_registers_as_the_operand_does():
    """What is no more than another name for registers on the chip: element by element, by the layouts' own tilings.

    And WGMMA's by the figure of the PTX manual (m64k16, 16 bits): lane l of warp w has the rows 16 w + l / 4 and eight
    below, the columns 2 (l % 4) and the one after, and both eight to the right.
    """
    from jax.experimental.pallas import mosaic_gpu as plgpu

    def elements(layout, shape):
        """[warp, lane, register, element of it] -> flat index into shape, registers in the order of their array."""
        tiled = layout.tiling.tile_shape(shape)
        index = np.arange(np.prod(shape)).reshape(shape)
        for tile in layout.tiling.tiles:
            lead = index.ndim - len(tile)
            cut = [index.shape[:lead]] + [(n // t, t) for n, t in zip(index.shape[lead:], tile, strict=True)]
            index = index.reshape([n for part in cut for n in part])
            order = [lead + 2 * i for i in range(len(tile))] + [lead + 2 * i + 1 for i in range(len(tile))]
            index = index.transpose([*range(lead), *order])
        assert index.shape == tuple(tiled)
        warp, lanes, vector = layout.warp_dims, layout.lane_dims, layout.vector_dim
        found = np.moveaxis(index, [*warp, *lanes, vector], [0, 1, 2, -1])
        return found.reshape(4, 32, -1, found.shape[-1])

    words = elements(group_scaled._words_layout().to_mgpu(), (64, 16))[..., 0]
    halves = elements(plgpu.Layout.WGMMA.to_mgpu(), (64, 32))
    row, column = np.divmod(words, 16)
    assert (halves[..., 0] == row * 32 + 2 * column).all() and (halves[..., 1] == halves[..., 0] + 1).all()
    warp, lane = np.arange(4)[:, None, None], np.arange(32)[None, :, None]
    across, down = (a.reshape(-1) for a in np.meshgrid([0, 8, 16, 24], [0, 8], indexing="ij"))
    assert (halves[..., 0] == (16 * warp + lane // 4 + down) * 32 + 2 * (lane % 4) + across).all()


@mosaic_gpu.needed
@pytest.mark.parametrize(("M", "group"), [(16, 128), (512, 64)])
def test_lowers_for_hopper_without_its_packages(M, group):
    K, N, step = 576 * 2, 192, group_scaled.depth(group)
    shapes = ((M, K), jnp.bfloat16), ((K // step, N, step // 8), jnp.int32), ((K // group, N), jnp.float32)
    assert "mosaic_gpu" in gpu.lower(gpu.GPUS["H100"], group_scaled.matmul, *shapes).as_text()


def test_tiles_fill_the_chip_and_divide_what_they_cut():
    for M in (1, 16, 64, 100, 2048):
        for K, N, group in ((4096, 4096, 128), (576, 192, 64), (8192, 28672, 128)):
            tiling = group_scaled.tiles(M, K, N, group)
            assert N % tiling.outputs == 0 and K // group_scaled.depth(group) % tiling.splits == 0
            assert tiling.outputs // tiling.warpgroups * tiling.rows <= 64 * 128  # two accumulators of 64 registers
            assert tiling.splits == 1 or 8 * tiling.splits * M <= K


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
        ((x, words, scale, Tiles(64, 8, 2, 1, 4)), "one warpgroup multiplies or two do"),
    ):
        with pytest.raises(ValueError, match=match):
            group_scaled.matmul(*arguments)


@pytest.mark.parametrize("fmt", ["int4_g64", "int3_g128"])
def test_layout_is_exact_and_explain_says_why_not(fmt):
    q = quantize(jnp.asarray(draw.normal(0, 256, 64)), fmt)
    p = prepare({"w": q}, target="gpu")["w"]
    assert p.layout == NAME and p.shape == q.shape
    back = unpack({"w": p})["w"]
    assert back.codes.dtype == q.codes.dtype and bool((back.codes == q.codes).all())
    (told,) = choices(p, tokens=1)
    assert told.implementation == "dequantize" and dict(told.refused)["wgmma"] == "it is compiled for gpu, not cpu"
    why = dict(choices(p, platform="gpu")[0].refused)["wgmma"]
    assert ("bfloat16" if jax.__version_info__ >= (0, 12) else "needs jax 0.12") in why
    with pytest.raises(ValueError, match="'wgmma' cannot run"):
        dispatch.matmul(jnp.ones((1, 256), jnp.bfloat16), p, implementation="wgmma")


@mosaic_gpu.needed
def test_kernel_reads_the_layout():
    q = quantize(jnp.asarray(draw.normal(0, 160, 64)), "int4_g64")  # 160 is padded to three groups
    p = pack(q, NAME)
    x = jnp.asarray(draw.normal(1, 2, 3, 160)).astype(jnp.bfloat16)
    expected = np.asarray(x, np.float32) @ np.asarray(dequantize(q))
    np.testing.assert_allclose(run(x, p, jnp.float32, mosaic_gpu.interpreter()), expected, atol=1e-4)


def test_layout_refuses_what_the_kernel_cannot_hold():
    w = jnp.asarray(draw.normal(0, 128, 128))
    for fmt, match in (("int4_g64_affine", "uint4"), ("int4_g32", "no multiple of 64"), ("int8", "int8 codes do not")):
        with pytest.raises(ValueError, match=match):
            pack(quantize(w, fmt), NAME)


def test_gradients_are_those_of_the_reference():
    x, words, scale, _ = problem(4, 64, 64, 64)

    def slopes(f):
        return f((x, words, scale), jnp.ones((4, 64)))

    dx, dwords, dscale = slopes(lambda kept, dy: group_scaled._backward(None, False, jnp.float32, kept, dy))
    codes = np.asarray(group_scaled.unpack(words, "float32"))
    assert dwords.dtype == jax.dtypes.float0
    np.testing.assert_allclose(np.asarray(dx, np.float32), np.broadcast_to((codes * scale).sum(1), (4, 64)), rtol=1e-2)
    np.testing.assert_allclose(dscale[0], (np.asarray(x, np.float32) @ codes).sum(0), rtol=1e-6)
