"""What the TPU kernels make of every code of every coding, in interpret mode against numpy, and their layouts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest

from qjax import dispatch
from qjax.formats import elements
from qjax.formats.format import Format
from qjax.kernels.tpu import codings, group_scaled, tiles
from qjax.kernels.tpu.tiles import Blocks
from qjax.operators import narrow_codes
from qjax.operators.explanation import choices
from qjax.operators.narrow_codes import LAYOUTS, run
from qjax.operators.packed import pack
from qjax.operators.preparation import prepare, unpack
from qjax.qarray import Meta, QArray
from qjax.quantization import quantize
from tests import draw

E2M1 = np.arange(16, dtype=np.uint8).view(ml_dtypes.float4_e2m1fn).astype(np.float64)
TINY = 2.0**-126  # below it float32 arithmetic flushes


def stored(codes, coding, group):
    """The array a kernel reads."""
    return coding.stored(jnp.asarray(codes), coding.span(codes.shape[0], group)).reshape(-1, codes.shape[1])


@pytest.mark.parametrize("scaled", ["sums", "codes"])
@pytest.mark.parametrize("coding", [codings.E2M1, codings.E2M1_PAIRS], ids=lambda coding: coding.name)
@pytest.mark.parametrize(
    ("group", "kind", "last"),  # the code of the last scale that is finite, 2^14 times as large and multiplied with 6
    [(32, ml_dtypes.float8_e8m0fnu, 127 + 113), (16, ml_dtypes.float8_e4m3fn, 126)],  # MXFP4, NVFP4
)
def test_every_code_of_e2m1_is_exact_under_every_block_scale(group, kind, last, coding, scaled):
    """Every weight as the kernel multiplies it: its product with the identity.

    Pairs are four times their value: a quarter of the scale is what meets them, and it is to be a normal number.
    """
    first = 3 if coding.factor > 1 else 1
    codes = np.tile(np.arange(16, dtype=np.uint8)[:, None], (4, 128))
    scale = np.resize(np.arange(first, last + 1, dtype=np.uint8), (64 // group, 128)).view(kind)
    steps = np.repeat(scale.astype(np.float64), group, 0)
    expected = E2M1[codes] * steps
    arguments = jnp.eye(64, dtype=jnp.bfloat16), stored(codes, coding, group), jnp.asarray(scale)
    y = group_scaled.matmul(*arguments, coding, Blocks(64, 128, 64), scaled, True)
    assert y.dtype == jnp.float32
    y, kept = np.asarray(y), (np.abs(expected) >= TINY) | (expected == 0)
    assert (y[kept] == expected[kept]).all() and (np.abs(y[~kept]) < TINY).all()


@pytest.mark.parametrize(
    ("coding", "values"),
    [
        (codings.E4M3, np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float64)),
        (codings.INT4, np.arange(16.0) - 8),
        (codings.INT2, np.arange(4.0) - 2),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_every_other_code_is_exact_and_stays_in_its_column(coding, values):
    """The sums of columns that hold one code each, and zeros; NaN where the code is one."""
    codes, columns = np.full((128, 256), coding.above, np.uint8), np.arange(256)
    codes[columns // 2, columns] = columns % len(values)
    x, scale = jnp.ones((1, 128), jnp.bfloat16), jnp.full((2, 256), 0.25)
    for scaled in ("sums", "codes"):
        y = group_scaled.matmul(x, stored(codes, coding, 64), scale, coding, None, scaled, True)
        np.testing.assert_array_equal(np.asarray(y)[0], np.resize(values, 256) / 4)


@pytest.mark.parametrize("kind", [ml_dtypes.float8_e8m0fnu, ml_dtypes.float8_e4m3fn])
def test_every_scale_of_a_byte_is_read_in_the_kernel(kind):
    """NaN included; 2^-127 counts as zero."""
    codes, x = np.full((64, 256), 2, np.uint8), jnp.zeros((1, 64), jnp.bfloat16).at[0, 3].set(1)
    scale = np.stack([np.arange(256, dtype=np.uint8), np.full(256, 0x38, np.uint8)]).view(kind)
    arguments = x, stored(codes, codings.E2M1, 32), jnp.asarray(scale)
    y = group_scaled.matmul(*arguments, codings.E2M1, None, "sums", True)
    expected = scale[0].astype(np.float32)
    np.testing.assert_array_equal(np.asarray(y)[0], np.where(np.abs(expected) < TINY, 0, expected))


@pytest.mark.parametrize(
    ("M", "K", "N", "group", "tiling"),
    [
        (1, 512, 384, 32, Blocks(16, 384, 256)),  # a strip and a half; two blocks in depth
        (20, 192, 128, 16, Blocks(16, 128, 192)),  # two blocks of rows, spans of 96
        (3, 256, 768, 32, Blocks(16, 256, 256, 3)),  # copied by hand
        (2, 512, 128, 256, None),  # a group longer than a span
    ],
)
def test_short_groups_sum_exactly(M, K, N, group, tiling):
    """Small integers and power-of-two scales, so that every order of summation and bfloat16 itself are exact."""
    x, codes, steps = (
        np.array(draw.integers(seed, low, high, *shape))
        for seed, (low, high, *shape) in enumerate(((-4, 5, M, K), (0, 16, K, N), (-3, 3, K // group, N)))
    )
    scale = 2.0**steps
    expected = x @ (E2M1[codes] * np.repeat(scale, group, 0))
    arguments = jnp.asarray(x, jnp.bfloat16), stored(codes, codings.E2M1, group), jnp.asarray(scale, jnp.float32)
    for scaled in ("sums", "codes") if tiling is None or tiling.buffers == 2 else ("sums",):
        y = group_scaled.matmul(*arguments, codings.E2M1, tiling, scaled, True)
        assert (np.asarray(y) == expected).all(), scaled
    assert (np.asarray(group_scaled.reference(*arguments, codings.E2M1)) == expected).all()


def test_hostile_numbers_stay_in_their_row_and_column():
    x, codes = np.ones((4, 64), np.float32), np.full((64, 128), 7, np.uint8)
    x[0, 3], x[1, 40], x[2, :] = np.nan, np.inf, 1e-30
    scale = np.ones((4, 128), np.float32)
    scale[2, :3] = np.inf, np.nan, 0
    arguments = jnp.asarray(x, jnp.bfloat16), stored(codes, codings.E2M1, 16), jnp.asarray(scale)
    y = np.asarray(group_scaled.matmul(*arguments, codings.E2M1, None, "sums", True))
    assert not np.isfinite(y[:2]).any() and not np.isfinite(y[:, :2]).any()
    tiny = float(jnp.bfloat16(1e-30))
    np.testing.assert_allclose(y[2, 2:], np.where(np.arange(2, 128) == 2, 48, 64) * 6 * tiny, rtol=1e-5)
    np.testing.assert_array_equal(y[3, 2:], np.where(np.arange(2, 128) == 2, 48, 64) * 6)


@pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason=f"the interpreter of races needs jax 0.12: {jax.__version__}"
)
def test_no_races_where_groups_share_a_span():
    from jax.experimental.pallas import tpu as pltpu

    x, codes = np.ones((16, 64), np.float32), np.full((64, 512), 5, np.uint8)
    look = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
    arguments = jnp.asarray(x, jnp.bfloat16), stored(codes, codings.E2M1, 32), jnp.ones((2, 512))
    y = group_scaled.matmul(*arguments, codings.E2M1, Blocks(16, 128, 64, 3), "sums", look)
    assert (np.asarray(y) == 64 * 3).all()


@pytest.mark.parametrize(
    ("fmt", "layout", "shape"),
    [
        ("mxfp4", "tpu.e2m1.1", (2, 64, 128)),
        ("nvfp4", "tpu.e2m1.1", (180, 128)),  # padded to 192
        ("fp4_e2m1_g32", "tpu.e2m1.1", (64, 128)),  # scales that are no bytes
        ("fp8_e4m3_g64", "tpu.e4m3.1", (128, 128)),
    ],
)
def test_prepared_leaves_are_exact_and_the_kernel_reads_them(fmt, layout, shape):
    q = quantize(jnp.asarray(draw.normal(0, *shape, scale=0.02)), fmt, batch_axes=len(shape) - 2)
    p = prepare({"w": q}, target="tpu")["w"]
    assert p.layout == layout and p.shape == q.shape
    back = unpack({"w": p})["w"]
    assert back.codes.dtype == q.codes.dtype and bool((back.codes == q.codes).all())
    why = dict(choices(p, platform="tpu")[0].refused)["mosaic"]
    assert ("bfloat16" if jax.__version_info__ >= (0, 12) else "needs jax 0.12") in why
    if len(shape) > 2:
        q, p = dispatch.index(q, 1), dispatch.index(p, 1)
    x = jnp.asarray(draw.normal(1, 2, 3, shape[-2])).astype(jnp.bfloat16)
    W = dispatch.dense(q)
    error = np.abs(run(x, p, jnp.float32, interpret=True) - dispatch.product(x.astype(jnp.float32), W))
    size = np.abs(np.asarray(x, np.float32)) @ np.abs(np.asarray(W))
    assert (np.asarray(error) <= 1e-6 * size).all()  # the sums alone round: no weight and no scale does


def test_gradients_pass_scales_of_a_byte():
    codes, scale = jnp.full((32, 128), 0x25, jnp.uint8), jnp.full((2, 128), 0.5, jnp.float8_e8m0fnu)
    slope = jax.grad(lambda x: group_scaled.matmul(x, codes, scale, codings.E2M1, None, "sums", True).sum())
    np.testing.assert_array_equal(slope(jnp.ones((1, 64)))[0], np.repeat([1.5 * 128, 0.5 * 128], 32))


def test_the_chip_without_a_unit_for_the_operands_is_told(monkeypatch):
    p = pack(quantize(jnp.ones((64, 128)), "mxfp4"), "tpu.e2m1.1")
    for chip, match in (("v4", "no floats of eight bits: prepare for tpu-v4"), ("v5e", None)):
        monkeypatch.setattr(tiles, "chip", lambda chip=chip: chip)
        monkeypatch.setattr(narrow_codes, "refuse_platform", lambda platform: None)
        why = narrow_codes.refuse_kernel(p, 1, "tpu", jnp.bfloat16)
        assert (why is None) if match is None else match in why


@pytest.mark.parametrize("layout", ["tpu.e2m1.1", "tpu.e2m1_pairs.1"])
def test_layouts_are_inverted_over_every_code(layout):
    """Every code beside every other one, negative zeros too."""
    codes = jnp.asarray(np.concatenate([np.arange(4096) // 16 % 16, np.arange(4096) % 16]), jnp.uint8).reshape(64, 128)
    p = pack(QArray(codes, (jnp.ones((2, 128)),), None, None, Meta(elements.E2M1, (32, 1))), layout)
    assert (np.asarray(unpack({"w": p})["w"].codes) == codes).all()
    assert p.codes.nbytes == codes.nbytes // (1 if "pairs" in layout else 2)
    assert LAYOUTS[p.layout].core(p.codes, p.grid) == codes.shape


def test_layouts_refuse_what_is_not_theirs():
    w = jnp.asarray(draw.normal(0, 64, 128))
    for fmt, layout, match in (
        ("nf4_g64", "tpu.e2m1.1", "nf4 is not e2m1"),
        ("mxfp4", "tpu.int4.2", "e2m1 codes do not fit int4"),
        (Format(elements.E2M1, scale=None), "tpu.e2m1.1", "no scale"),
    ):
        with pytest.raises(ValueError, match=match):
            pack(quantize(w, fmt), layout)
    with pytest.raises(ValueError, match="100 outputs"):
        pack(quantize(w[:, :100], "mxfp4"), "tpu.e2m1.1")
