"""Integer execution against exact integer arithmetic and against the dequantized product."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from qjax.formats import Format, Int
from qjax.integer import accumulate, integer_bias, integer_matmul, integer_sums
from qjax.quantization import dequantize, quantize
from qjax.rounding.rescaling import dyadic, rescale

T, K, N = 5, 70, 6
PAIRS = {
    "row by column": ("int8_token", "int8"),
    "affine by affine": ("int8_affine", "int4_affine"),
    "affine by groups": ("int8_tensor_affine", "int4_g32_affine"),
    "groups of both": ("int8_g64", "int3_g32"),
    "unsigned": (Format(Int(8, signed=False), scale="float32"), "int8_g16_signed"),
    "tiles": ("int8_t32x2", "int8_t64x4_affine"),
}


def operands(x_format, w_format):
    rng = np.random.default_rng(0)
    x = rng.normal(1, 2, size=(T, K)).astype(np.float32)
    w = rng.normal(0.2, 1, size=(K, N)).astype(np.float32)
    return quantize(jnp.asarray(np.abs(x)), x_format, axis=-1), quantize(jnp.asarray(w), w_format)


@pytest.mark.parametrize("name", [name for name in PAIRS if name != "affine by affine"])
def test_integers_and_floats_agree(name):
    x, w = operands(*PAIRS[name])
    fake = np.asarray(dequantize(x), np.float64) @ np.asarray(dequantize(w), np.float64)
    np.testing.assert_allclose(integer_matmul(x, w), fake, rtol=2e-6, atol=2e-5)


@pytest.mark.parametrize("name", ["affine by affine", "unsigned"])
def test_sums_are_exact(name):
    x, w = operands(*PAIRS[name])

    def centred(q):
        zero = (
            0 if q.offset is None else np.repeat(np.asarray(q.offset, np.int64), q.codes.shape[0] // len(q.offset), 0)
        )
        return (np.asarray(q.codes, np.int64) - zero)[: q.shape[0], : q.shape[1]]

    size = 16 if name == "unsigned" else K
    left, right = centred(x), centred(w)
    groups = [left[:, i : i + size] @ right[i : i + size] for i in range(0, K, size)]
    np.testing.assert_array_equal(integer_sums(x, w), groups)


def test_scales_that_are_powers_of_two_leave_no_difference():
    rng = np.random.default_rng(1)
    fmt = Format(Int(8, narrow=True), scale="float8_e8m0fnu", rule="floor")
    x, w = (
        quantize(jnp.asarray(rng.normal(size=s).astype(np.float32)), fmt, axis=a)
        for s, a in (((T, K), -1), ((K, N), 0))
    )
    exact = np.asarray(dequantize(x), np.float64) @ np.asarray(dequantize(w), np.float64)
    np.testing.assert_array_equal(integer_matmul(x, w), exact.astype(np.float32))


def test_a_layer_in_integers_alone():
    """int8 in, int32 sums and bias, int8 out: the codes of the real result, as TFLite computes them."""
    x, w = operands("int8_tensor_narrow_f32", "int8_narrow_f32")
    bias = jnp.asarray(np.random.default_rng(2).normal(size=N).astype(np.float32) * 10)
    b = integer_bias(bias, x, w)
    s_x, s_w = np.asarray(x.scales[0], np.float64), np.asarray(w.scales[0], np.float64)[0]
    np.testing.assert_array_equal(b, np.round(np.asarray(bias, np.float64) / (s_x[0, 0] * s_w)))
    real = integer_matmul(x, w, b)
    np.testing.assert_allclose(real - integer_matmul(x, w), np.broadcast_to(bias, (T, N)), atol=2e-3)
    s_y = float(jnp.max(jnp.abs(real))) / 127
    codes = rescale(
        integer_sums(x, w)[0] + b[None], dyadic(jnp.asarray((s_x * s_w)[0] / s_y, jnp.float32)), "half_even"
    )
    np.testing.assert_array_equal(codes, np.round(np.asarray(real, np.float64) / s_y))


@pytest.mark.parametrize("bits", [8, 12, 20, 32])
@pytest.mark.parametrize("overflow", ["wrap", "saturate"])
def test_narrow_accumulators_are_the_loop(bits, overflow):
    rng = np.random.default_rng(bits)
    high = 2**15 if bits == 32 else 128
    a, b = rng.integers(-high, high, (3, 40)), rng.integers(-high, high, (40, 4))
    a[0], b[:, 0] = high - 1, high - 1  # runs against the end
    low, top = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    total = np.zeros((3, 4), np.int64)
    for k in range(40):
        total = total + np.outer(a[:, k], b[k])
        total = np.clip(total, low, top) if overflow == "saturate" else (total - low) % 2**bits + low
    dtype = jnp.int16 if bits == 32 else jnp.int8
    np.testing.assert_array_equal(accumulate(jnp.asarray(a, dtype), jnp.asarray(b, dtype), bits, overflow), total)


W_ONES = jnp.ones((K, N))
W = quantize(W_ONES, "int8")
X = quantize(jnp.ones((T, K)), "int8", axis=-1)
BAD = [
    (lambda: integer_matmul(quantize(jnp.ones((T, K)), "fp8_e4m3", axis=-1), W), "not integers"),
    (lambda: integer_matmul(X, quantize(jnp.ones((K, N)), "int4_minimum")), "minimum"),
    (lambda: integer_matmul(X, quantize(jnp.ones((K + 1, N)), "int8")), "expected"),
    (lambda: integer_matmul(quantize(jnp.ones((T, K)), "int8_g48", axis=-1), quantize(W_ONES, "int8_g32")), "fit into"),
    (lambda: integer_matmul(X, quantize(W_ONES, "int8_g32"), jnp.zeros(N, jnp.int32)), "groups have their own"),
    (lambda: integer_bias(jnp.ones(N), X, W), "one scale a column"),
    (lambda: accumulate(jnp.ones((1, 1), jnp.int8), jnp.ones((1, 1), jnp.int8), 33), "2..32"),
    (lambda: accumulate(jnp.ones((1, 1), jnp.int8), jnp.ones((1, 1), jnp.int8), 8, "clip"), "none of wrap"),
]


@pytest.mark.parametrize(("call", "words"), BAD)
def test_what_integers_cannot_do_is_refused(call, words):
    with pytest.raises(ValueError, match=words):
        call()


def test_floats_are_no_codes():
    with pytest.raises(TypeError, match="a must hold integers"):
        accumulate(jnp.ones((1, 1)), jnp.ones((1, 1), jnp.int8), 8)
