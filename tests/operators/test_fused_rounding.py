"""Inputs rounded, and rotated, inside the product, interpreted: codes and scales bit for bit those of the chain."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax import dispatch
from qjax.kernels.tpu import dynamic_products, tiles
from qjax.operators import fused_rounding, narrow_codes, rounded_inputs
from qjax.operators.explanation import choices
from qjax.operators.maps.hadamard import Hadamard
from qjax.operators.maps.quantize import Quantize
from qjax.operators.pre import Pre
from qjax.operators.preparation import prepare
from qjax.quantization import quantize, steps
from tests import draw

K, N = 256, 128
FORMATS = ("int8", "int8_f32", "int8_narrow_f32", "int8_narrow", "int5")


def interpreted(joint):
    return joint._replace(run=functools.partial(joint.run, interpret=True))


FUSED = interpreted(rounded_inputs.JOINTS[0])
TURNED = interpreted(rounded_inputs.TURNED)


def hostile():
    """Rows of every magnitude, ties, zeros, infinities and NaN."""
    x = np.array(draw.normal(0, 12, K)) * 10.0 ** np.arange(-6, 6)[:, None]
    x[1], x[2, 3], x[3, 5], x[4] = 0, np.inf, np.nan, 1e-38
    x[5] = np.arange(K) % 255 - 127.5
    x[6, 0], x[7, :2] = 3e38, (-3.4e38, np.inf)
    return jnp.asarray(x, jnp.float32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("fmt", FORMATS)
def test_codes_scales_and_products_are_those_of_the_chain(fmt, dtype):
    x, T, q = hostile().astype(dtype), Quantize.dynamic(fmt), quantize(jnp.asarray(draw.normal(1, K, N)), "int8")
    expected, rule = T.codes(x), fused_rounding.rule(T.format)
    wide = x.astype(jnp.float32)
    largest, nan = jnp.max(jnp.abs(wide), 1, keepdims=True), jnp.isnan(wide).any(1, keepdims=True)
    scale = rule.scale(largest, nan)
    np.testing.assert_array_equal(scale, steps(expected)[0])
    np.testing.assert_array_equal(rule.codes(wide, scale), expected.codes)
    y = rounded_inputs.matmul(FUSED, x, T, q, jnp.float32)
    np.testing.assert_array_equal(y, rounded_inputs.integers(expected, q, interpret=True))
    columns = jnp.broadcast_to(steps(q)[0][0], (N,))
    np.testing.assert_array_equal(y, dynamic_products.reference(x, q.codes, columns, rule=rule))


@pytest.mark.parametrize("prepared", [False, True])
def test_a_rotation_in_front_is_that_of_the_chain(prepared):
    """Whole numbers in blocks of 4^k channels: every sum is exact."""
    x, T = jnp.asarray(draw.integers(0, -9, 10, 5, K), jnp.float32), Quantize.dynamic("int8")
    R, q = Hadamard.random(jax.random.key(0), K, sylvester=True), quantize(jnp.asarray(draw.normal(1, K, N)), "int8")
    leaf = prepare(q, "tpu") if prepared else q
    y = rounded_inputs.matmul(TURNED, x[None], T, leaf, rotation=R)
    assert y.shape == (1, 5, N) and y.dtype == x.dtype
    np.testing.assert_array_equal(y[0], rounded_inputs.integers(T.codes(R.apply(x)), leaf, interpret=True))


def test_gradients_are_those_of_the_chain():
    x, T = jnp.asarray(draw.normal(0, 3, K)), Quantize.dynamic("int8_f32")
    R, q = Hadamard.random(jax.random.key(0), K, 128, sylvester=True), quantize(jnp.ones((K, N)), "int8_f32")
    fused = lambda x, q: (rounded_inputs.matmul(TURNED, x, T, q, rotation=R) ** 2).sum()  # noqa: E731
    chain = lambda x, q: (Pre(R, Pre(T, q)).matmul(x) ** 2).sum()  # noqa: E731
    (dx, dq), (like, plain) = (jax.grad(f, (0, 1), allow_int=True)(x, q) for f in (fused, chain))
    np.testing.assert_allclose(dx, like, rtol=1e-3, atol=1e-2 * float(jnp.abs(like).max()))
    np.testing.assert_allclose(dq.scales[0], plain.scales[0], rtol=1e-3)


def test_what_is_taken_and_why_not(monkeypatch):
    q, T, R = quantize(jnp.ones((K, N)), "int8"), Quantize.dynamic("int8"), Hadamard(None, K, sylvester=True)
    if jax.__version_info__ >= (0, 12):
        assert choices({"w": Pre(T, q)}, platform="tpu")[0].implementation == "dynamic"
        (told,) = choices({"w": Pre(R, Pre(T, q))}, platform="tpu")
        assert told.implementation == "hadamard" and not told.dequantizes
        monkeypatch.setattr(tiles, "chip", lambda: "7x")
        assert choices(Pre(R, Pre(T, q)), platform="tpu")[0].implementation == "integers"
        monkeypatch.undo()
    monkeypatch.setattr(narrow_codes, "refuse_platform", lambda platform: None)
    for map_, rotation, words in (
        (Quantize.dynamic("int8_f16"), None, "stored as bfloat16 or float32"),
        (Quantize.dynamic("int8_g64"), None, "no symmetric format with a scale a token"),
        (Quantize.static("int8_tensor", -1.0, 1.0), None, "calibrated"),
        (T, Hadamard(None, K), "not Sylvester's"),
        (T, R.inverse(), "an inverse"),
        (T, Hadamard(None, 64, sylvester=True), "64 channels are 1 x 64"),
    ):
        assert words in str(fused_rounding.refuse(map_, rotation, K))
    if jax.__version_info__ >= (0, 12):
        (told,) = choices(Pre(Hadamard(None, K), Pre(T, q)), platform="tpu")
        assert told.implementation == "dynamic" and "not Sylvester's" in dict(told.refused)["hadamard"]


def test_a_named_way_that_cannot_run_raises():
    op = Pre(Hadamard(None, K, sylvester=True), Pre(Quantize.dynamic("int8"), quantize(jnp.ones((K, N)), "int8")))
    for name in ("hadamard", "dynamic"):
        with pytest.raises(ValueError, match=f"'{name}' cannot run QArray .256, 128.: it is compiled for tpu, not cpu"):
            dispatch.matmul(jnp.ones((2, K)), op, implementation=name)
