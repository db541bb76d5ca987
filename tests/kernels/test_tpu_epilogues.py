"""Corrections added inside the group-scaled kernels, interpreted, against numpy: ranks, hostile values, gradients."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax.formats.elements import NF4
from qjax.kernels.tpu import codings, epilogues, group_scaled
from qjax.kernels.tpu.codings import INT4, INT8
from qjax.kernels.tpu.epilogues import Epilogue
from qjax.kernels.tpu.tiles import Blocks
from tests import draw
from tests.kernels.test_tpu_group_scaled import problem


def correction(M, R, N, outer):
    """Small integers, and powers of two in front of them where `outer`: exact in every order of summation."""
    t, b = draw.integers(7, -3, 4, M, R), draw.integers(8, -3, 4, R, N)
    powers = jnp.exp2(draw.integers(9, -2, 3, 1, N).astype(jnp.float32)) if outer else None
    return Epilogue(t.astype(jnp.float32), b.astype(jnp.bfloat16), powers)


def expected_with(y, epilogue):
    t, b, outer = (None if a is None else np.asarray(a, np.float64) for a in epilogue)
    return y * (1 if outer is None else outer) + t @ b


@pytest.mark.parametrize(
    ("coding", "M", "K", "N", "group", "tiling", "scaled", "R", "outer"),
    [
        (INT4, 1, 1024, 256, 64, Blocks(16, 128, 512), "sums", 32, False),  # one row; several blocks each way
        (INT8, 33, 512, 256, 32, Blocks(16, 256, 256), "sums", 1, True),  # ragged rows, spread over a span
        (INT4, 20, 576, 128, 64, None, "codes", 17, False),  # a rank that is no multiple of 16
        (INT8, 33, 512, 256, 64, Blocks(16, 128, 512), "codes", 300, True),
        (INT4, 20, 576, 1280, 64, Blocks(32, 256, 576, 4), "sums", 5, True),  # streamed; a buffer used twice
        (INT4, 1, 512, 1536, 64, Blocks(16, 512, 512, 3), "sums", 64, False),  # streamed; the first block in pieces
        (INT4, 3, 256, 128, 64, None, "sums", 0, True),  # no column at all
        (INT4, 0, 256, 128, 64, None, "sums", 4, False),  # no row at all
    ],
)
def test_exact_where_sums_are(coding, M, K, N, group, tiling, scaled, R, outer):
    x, codes, scale, product = problem(coding, M, K, N, group)
    epilogue = correction(M, R, N, outer)
    y = group_scaled.matmul(x, codes, scale, coding, tiling, scaled, True, None, epilogue)
    assert y.shape == (M, N) and y.dtype == jnp.float32
    expected = expected_with(product, epilogue)
    assert (np.asarray(y) == expected).all()
    assert (np.asarray(group_scaled.reference(x, codes, scale, coding, None, epilogue)) == expected).all()


@pytest.mark.parametrize(("scaled", "buffers"), [("sums", 2), ("sums", 3), ("codes", 2)])
def test_a_table_has_its_unit_apart_from_the_correction(scaled, buffers):
    """Scaled sums of looked up codes are in units of the tables' own, which t @ b is not."""
    M, K, N = 4, 128, 256
    x, codes, scale, _ = problem(INT4, M, K, N, 64)
    each = 2.0 ** (np.arange(N, dtype=np.float32) % 9)[None]  # a table of its own for every output
    table, epilogue = jnp.asarray(NF4.values()[:, None] * 37 * each), correction(M, 20, N, True)
    tiling = Blocks(16, 128, K, buffers)
    arguments = (x, codes, scale, codings.TABLE4)
    y = group_scaled.matmul(*arguments, tiling, scaled, True, table, epilogue)
    np.testing.assert_allclose(
        y, group_scaled.reference(*arguments, table, epilogue), rtol=2e-2 if scaled == "codes" else 1e-5, atol=1e-2
    )


@pytest.mark.parametrize("buffers", [2, 3])
def test_hostile_values_stay_where_they_belong(buffers):
    """Those of t in their rows, those of b and outer in their columns; what is filled up to tiles adds nothing."""
    M, N, R = 4, 256, 3
    x, codes, scale, _ = problem(INT4, M, 256, N, 64)
    t, b, outer = (np.ones(shape, np.float32) for shape in ((M, R), (R, N), (1, N)))
    t[1, 0], t[2, 1] = np.inf, np.nan
    b[0, :4] = np.inf, np.nan, 1e-40, 3e38
    outer[0, 4:7] = np.nan, 0.0, 1e-40
    epilogue = Epilogue(jnp.asarray(t), jnp.asarray(b), jnp.asarray(outer))
    y = np.asarray(
        group_scaled.matmul(x, codes, scale, INT4, Blocks(16, 128, 256, buffers), "sums", True, None, epilogue)
    )
    product = np.asarray(group_scaled.reference(x, codes, scale, INT4))
    assert np.isposinf(y[1, 7:]).all() and np.isnan(y[2]).all()
    assert np.isposinf(y[[0, 3], 0]).all() and np.isnan(y[:, [1, 4]]).all()
    clean = np.ix_([0, 3], range(7, N))
    np.testing.assert_allclose(y[clean], product[clean] + R, rtol=1e-6)
    np.testing.assert_allclose(y[[0, 3], 2], product[[0, 3], 2] + R - 1, rtol=1e-6)  # a subnormal of b
    np.testing.assert_allclose(y[[0, 3], 3], np.float32(jnp.bfloat16(3e38)), rtol=1e-6)
    np.testing.assert_allclose(y[[0, 3], 5:7], R, atol=1e-6)  # the product is gone, the correction is not


def test_rounding_is_that_of_the_activations():
    """Half a unit of bfloat16 for t and for b, as XLA loses it that multiplies for x of this type; sums are float32."""
    M, N, R = 8, 128, 64
    x, codes, scale, product = problem(INT4, M, 256, N, 64)
    t, b = draw.normal(1, M, R), draw.normal(2, R, N)
    y = group_scaled.matmul(x, codes, scale, INT4, None, "sums", True, None, Epilogue(t, b))
    rounded = [np.asarray(a.astype(jnp.bfloat16), np.float64) for a in (t, b)]
    np.testing.assert_allclose(y, product + rounded[0] @ rounded[1], rtol=1e-6, atol=1e-4)


@pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason=f"the interpreter of races needs jax 0.12: {jax.__version__}"
)
@pytest.mark.parametrize("tiling", [Blocks(16, 128, 512), Blocks(16, 256, 1024, 3)])
def test_no_races_and_nothing_uninitialised(tiling):
    from jax.experimental.pallas import tpu as pltpu

    x, codes, scale, product = problem(INT4, 16, 1024, 1280, 64)
    epilogue = correction(16, 20, 1280, True)
    look = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
    y = group_scaled.matmul(x, codes, scale, INT4, tiling, "sums", look, None, epilogue)
    assert (np.asarray(y) == expected_with(product, epilogue)).all()


def test_shapes_that_do_not_fit_raise():
    x, codes, scale = jnp.ones((2, 256), jnp.bfloat16), jnp.ones((128, 128), jnp.uint8), jnp.ones((4, 128))
    for shapes, match in (
        (((3, 4), (4, 128)), r"t \(3, 4\), b \(4, 128\) and outer None are not \[2, R\], \[R, 128\]"),
        (((2, 4), (5, 128)), r"b \(5, 128\)"),
        (((2, 4), (4, 128), (128,)), r"outer \(128,\)"),
        (((2, 4), (4,)), r"b \(4,\)"),
        (((2, 513), (513, 128)), "a rank of 513 is more than 512"),
    ):
        epilogue = Epilogue(*(jnp.ones(shape) for shape in shapes))
        with pytest.raises(ValueError, match=match):
            group_scaled.matmul(x, codes, scale, INT4, None, "sums", True, None, epilogue)
    assert epilogues.refuse(epilogues.MOST) is None


@pytest.mark.parametrize("outer", [False, True])
def test_gradients_are_those_of_the_reference(outer):
    """Of x, of scales unless a byte holds them, and of what the correction is made of, in their own types."""
    x, codes, scale, _ = problem(INT8, 4, 64, 128, 32)
    x, epilogue = x.astype(jnp.float32), correction(4, 3, 128, outer)

    def ours(x, s, e):
        return group_scaled.matmul(x, codes, s, INT8, None, "sums", True, None, e)

    def plain(x, s, e):
        return group_scaled.reference(x, codes, s, INT8, None, e)

    found, wanted = (jax.grad(lambda *a, f=f: (f(*a) ** 2).sum(), (0, 1, 2))(x, scale, epilogue) for f in (ours, plain))
    assert jax.tree.structure(found) == jax.tree.structure(wanted)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.dtype == b.dtype and bool((a != 0).any())
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=1e-6)
    stored = jnp.exp2(draw.integers(3, -2, 3, 2, 128).astype(jnp.float32)).astype(jnp.float8_e8m0fnu)
    found, wanted = (jax.grad(lambda *a, f=f: f(a[0], stored, a[1]).sum(), (0, 1))(x, epilogue) for f in (ours, plain))
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(a.astype(jnp.float32), b.astype(jnp.float32), rtol=1e-6)
