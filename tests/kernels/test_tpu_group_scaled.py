"""The TPU kernels in interpret mode against numpy: shapes, codes, hostile scales, races, gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax import dispatch
from qjax.kernels.tpu import codings, group_scaled
from qjax.kernels.tpu.codings import INT2, INT4, INT8
from qjax.kernels.tpu.tiles import Blocks
from qjax.operators.explanation import choices
from qjax.operators.narrow_codes import run
from qjax.operators.packed import pack
from qjax.operators.preparation import prepare, unpack
from qjax.quantization import dequantize, quantize
from tests import draw


def problem(coding, M, K, N, group):
    """Small integers and power-of-two scales, so that every order of summation and bfloat16 itself are exact."""
    top = 2 ** (coding.bits - 1)
    x, codes, steps = (
        np.array(draw.integers(seed, low, high, *shape))
        for seed, (low, high, *shape) in enumerate(((-4, 5, M, K), (-top, top, K, N), (-3, 3, K // group, N)))
    )
    codes[0, :2] = -top, top - 1
    scale = 2.0**steps
    expected = x @ (codes * np.repeat(scale, group, 0))
    stored = jnp.asarray(codes, jnp.int8)
    if coding.packed > 1:
        stored = codings.pack(stored + coding.above, coding.span(K, group), coding.packed).reshape(-1, N)
    return jnp.asarray(x, jnp.bfloat16), stored, jnp.asarray(scale, jnp.float32), expected


@pytest.mark.parametrize("scaled", ["sums", "codes"])
@pytest.mark.parametrize(
    ("coding", "M", "K", "N", "group", "tiling"),
    [
        (INT4, 1, 1024, 256, 64, Blocks(16, 128, 512)),  # one row; several blocks each way
        (INT4, 20, 576, 128, 64, None),  # ragged rows; nine groups, all in one block
        (INT8, 33, 512, 256, 32, Blocks(16, 256, 256)),
        (INT8, 3, 96, 128, 96, None),  # one group an axis
        (INT2, 3, 512, 128, 64, None),
    ],
)
def test_exact_where_sums_are(scaled, coding, M, K, N, group, tiling):
    x, codes, scale, expected = problem(coding, M, K, N, group)
    y = group_scaled.matmul(x, codes, scale, coding, tiling, scaled, True)
    assert y.shape == (M, N) and y.dtype == jnp.float32
    assert (np.asarray(y) == expected).all()
    assert (np.asarray(group_scaled.reference(x, codes, scale, coding)) == expected).all()


@pytest.mark.parametrize(
    ("coding", "M", "K", "N", "group", "columns", "buffers"),
    [
        (INT4, 1, 512, 1536, 64, 512, 3),  # the first block in three pieces; as many blocks as buffers
        (INT4, 20, 576, 1280, 64, 256, 4),  # ragged rows, nine groups, two pieces, a buffer used twice
        (INT8, 33, 96, 256, 96, 128, 3),  # fewer blocks than buffers, no pieces
        (INT8, 16, 64, 128, 32, 128, 3),  # one block
    ],
)
def test_streamed_blocks_are_exact(coding, M, K, N, group, columns, buffers):
    x, codes, scale, expected = problem(coding, M, K, N, group)
    y = group_scaled.matmul(x, codes, scale, coding, Blocks(-(-M // 16) * 16, columns, K, buffers), "sums", True)
    assert y.shape == (M, N) and y.dtype == jnp.float32
    assert (np.asarray(y) == expected).all()


@pytest.mark.parametrize(("scaled", "unit"), [("sums", 2.0**-22), ("codes", 2.0**-9 + 2.0**-22)])
def test_error_is_what_the_formulation_says(scaled, unit):
    """Scaled sums: float32 roundings alone. Scaled codes: half a unit of bfloat16 a weight, half that in the mean."""
    x, codes, _, _ = problem(INT8, 8, 512, 128, 64)
    scale = np.abs(np.array(draw.normal(5, 8, 128)))
    W = np.asarray(codes, np.float64) * np.repeat(scale.astype(np.float64), 64, 0)
    y = group_scaled.matmul(x, codes, jnp.asarray(scale), INT8, None, scaled, True)
    error = np.abs(y - np.asarray(x, np.float64) @ W)
    assert (error <= unit * (np.abs(np.asarray(x, np.float64)) @ np.abs(W))).all()


def test_hostile_scales_stay_in_their_column():
    x, codes, _, _ = problem(INT4, 4, 512, 128, 64)
    scale = np.ones((8, 128), np.float32)
    scale[3, :5] = np.inf, np.nan, 0.0, 1e-40, -np.inf
    fine = jnp.asarray(np.where(np.isfinite(scale), scale, 0))
    y, expected = (
        np.asarray(f)
        for f in (
            group_scaled.matmul(x, codes, jnp.asarray(scale), INT4, None, "sums", True),
            group_scaled.reference(x, codes, fine, INT4),
        )
    )
    assert not np.isfinite(y[:, [0, 1, 4]]).any()
    np.testing.assert_allclose(y[:, [2, 3, *range(5, 128)]], expected[:, [2, 3, *range(5, 128)]], rtol=1e-6, atol=1e-4)


@pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason=f"the interpreter of races needs jax 0.12: {jax.__version__}"
)
@pytest.mark.parametrize("tiling", [Blocks(16, 128, 512), Blocks(16, 256, 1024, 3)])
def test_no_races_and_nothing_uninitialised(tiling):
    from jax.experimental.pallas import tpu as pltpu

    x, codes, scale, expected = problem(INT4, 16, 1024, 1280, 64)
    look = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
    y = group_scaled.matmul(x, codes, scale, INT4, tiling, "sums", look)
    assert (np.asarray(y) == expected).all()


def test_shapes_that_do_not_fit_raise():
    x, codes, scale = jnp.ones((2, 256), jnp.bfloat16), jnp.ones((128, 128), jnp.uint8), jnp.ones((4, 128))
    assert group_scaled.matmul(x[:0], codes, scale, INT4).shape == (0, 128)
    for arguments, match in (
        ((x, codes[:, :100], scale[:, :100]), "100 outputs are no multiple of 128"),
        ((x, codes, jnp.ones((32, 128))), "groups of 8 are no multiple of 16"),
        ((x[:, :160], codes[:80], jnp.ones((2, 128))), "groups of 80 in 160 rows do not fill whole tiles of 64"),
        ((x[:, :128], codes, scale), "do not fit"),
        ((x, codes.astype(jnp.int8), scale), "int8 as w4a16"),
        ((x, codes, scale, Blocks(16, 128, 128)), "do not divide"),
        ((x, codes, scale, Blocks(16, 128, 256, 3), "codes"), "more than two buffers are for scaled sums"),
    ):
        with pytest.raises(ValueError, match=match):
            group_scaled.matmul(*arguments[:3], INT4, *arguments[3:])


@pytest.mark.parametrize(
    ("fmt", "layout"),
    [("int4_g64", "tpu.int4.2"), ("int8", "tpu.int8.1"), ("int3_g64", "tpu.int4.2"), ("int2_g64", "tpu.int2.1")],
)
def test_layout_is_exact_and_the_kernel_reads_it(fmt, layout):
    q = quantize(jnp.asarray(draw.normal(0, 256, 128)), fmt)
    p = prepare({"w": q}, target="tpu")["w"]
    assert p.layout == layout and p.shape == q.shape
    back = unpack({"w": p})["w"]
    assert back.codes.dtype == q.codes.dtype and bool((back.codes == q.codes).all())
    x = jnp.asarray(draw.normal(1, 2, 3, 256)).astype(jnp.bfloat16)
    W = dequantize(q)
    error = np.abs(run(x, p, jnp.float32, interpret=True) - dispatch.product(x.astype(jnp.float32), W))
    assert (np.asarray(error) <= 1e-5 * (np.abs(np.asarray(x, np.float32)) @ np.abs(np.asarray(W)))).all()
    (told,) = choices(p, tokens=1)
    assert told.implementation == "dequantize" and dict(told.refused)["mosaic"] == "it is compiled for tpu, not cpu"
    why = dict(choices(p, platform="tpu")[0].refused)["mosaic"]
    assert ("bfloat16" if jax.__version_info__ >= (0, 12) else "needs jax 0.12") in why
    with pytest.raises(ValueError, match="'mosaic' cannot run"):
        dispatch.matmul(x, p, implementation="mosaic")


def test_layout_refuses_what_the_kernel_cannot_hold():
    w = jnp.asarray(draw.normal(0, 128, 128))
    for fmt, match in (("int4_g64_affine", "uint4"), ("int4_g8", "no multiple of 16"), ("nf4_g64", "do not fit int4")):
        with pytest.raises(ValueError, match=match):
            pack(quantize(w, fmt), "tpu.int4.2")


def test_gradients_are_those_of_the_reference():
    x, codes, scale, _ = problem(INT8, 4, 64, 128, 32)

    def slopes(f):
        return jax.grad(lambda x, s: (f(x, s) ** 2).sum(), (0, 1))(x.astype(jnp.float32), scale)

    ours = slopes(lambda x, s: group_scaled.matmul(x, codes, s, INT8, None, "sums", True))
    for a, b in zip(ours, slopes(lambda x, s: group_scaled.reference(x, codes, s, INT8)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-6)
