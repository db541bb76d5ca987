"""What is refused, and that the message says which value and what to do."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax import metrics, qarray, ranges
from qjax.formats import NF4, Int
from qjax.quantization import bits_per_weight, check, dequantize, encode_with, fit, nbytes, quantize

W = jnp.ones((8, 4))


def corrupted(**changes):
    return lambda: check(dataclasses.replace(quantize(jnp.ones((64, 4)), "int4_g32"), **changes), "layers/3/q")


def with_meta(**changes):
    q = quantize(jnp.ones((64, 4)), "int4_g32")
    return corrupted(meta=dataclasses.replace(q.meta, **changes))


BAD = {
    "integers": (lambda: quantize(jnp.ones((8, 4), jnp.int32), "int4_g8"), TypeError, "int32"),
    "complex": (lambda: quantize(jnp.ones((8, 4), jnp.complex64), "int8"), TypeError, "complex64"),
    "vector": (lambda: quantize(jnp.ones(8), "int8"), ValueError, "axis=-1 for a vector"),
    "axis": (lambda: quantize(W, "int8", axis=2), ValueError, "axis=2"),
    "batch axis": (lambda: quantize(jnp.ones((2, 8, 4)), "int8", axis=0, batch_axes=1), ValueError, "batch_axes=1"),
    "all batch": (lambda: quantize(W, "int8", batch_axes=2), ValueError, "no core axis"),
    "negative batch": (lambda: quantize(W, "int8", batch_axes=-1), ValueError, "batch_axes=-1"),
    "empty": (lambda: quantize(jnp.ones((0, 4)), "int8"), ValueError, "no elements"),
    "two block axes": (lambda: quantize(W, "int4_g4", axis=(-2, -1)), ValueError, "one axis"),
    "format name": (lambda: quantize(W, "int4_g"), ValueError, "close names"),
    "format type": (lambda: quantize(W, 4), TypeError, "Format or its name"),
    "outer": (lambda: fit(W, "int4_g4", outer=(W, None)), ValueError, "plain bfloat16"),
    "offset": (
        lambda: encode_with(quantize(W, "int4_g4_affine").meta, W, W, None),
        ValueError,
        "no offset",
    ),
    "percentile": (lambda: ranges.percentile(0.0), ValueError, "percentile"),
    "mse": (lambda: ranges.mse(points=0), ValueError, "points"),
    "metrics": (lambda: metrics.sqnr(W, W[:2]), ValueError, "shapes differ"),
    "logits": (lambda: metrics.kl_divergence(W, W[:2]), ValueError, "shapes differ"),
    "index": (lambda: qarray.index(quantize(W, "int8"), 0), ValueError, "no batch axis"),
    "take": (lambda: qarray.take(quantize(W, "int8"), jnp.arange(2), 1), ValueError, "negative core axis"),
    "transpose": (lambda: qarray.transpose(quantize(jnp.ones(8), "int8", axis=-1)), ValueError, "two core axes"),
    "length": (lambda: qarray.Meta(Int(4), (1,), length=2), ValueError, "vector"),
    "meta": (lambda: qarray.Meta(Int(4), (1, 1), padding=(0,)), ValueError, "padding"),
    "nbytes": (lambda: nbytes({"a": "text"}), TypeError, "str"),
    "no weights": (lambda: bits_per_weight({}), ValueError, "no weights"),
    "check type": (lambda: check(W), TypeError, "QArray"),
    "check traced": (lambda: jax.jit(lambda w: check(quantize(w, "int8")))(W), TypeError, "outside jit"),
    "code range": (corrupted(codes=jnp.full((64, 4), 9, jnp.int8)), ValueError, r"layers/3/q.codes: 9 at \(0, 0\)"),
    "float codes": (corrupted(codes=jnp.ones((64, 4))), ValueError, "expected integers"),
    "zero scale": (corrupted(scales=(jnp.zeros((2, 4)),)), ValueError, "zero scale"),
    "nan scale": (corrupted(scales=(jnp.full((2, 4), jnp.nan),)), ValueError, "nan"),
    "scale shape": (corrupted(scales=(jnp.ones((3, 4)),)), ValueError, r"\(3, 4\)"),
    "scale rank": (corrupted(scales=(jnp.ones(()),)), ValueError, "rank 0"),
    "no scale": (corrupted(scales=()), ValueError, "neither scale nor table"),
    "stray offset": (corrupted(offset=jnp.ones((2, 4))), ValueError, "offset None"),
    "table": (corrupted(table=jnp.ones(16)), ValueError, "table"),
    "block": (with_meta(block=(48, 1)), ValueError, "blocks of 48"),
    "padding": (with_meta(padding=(32, 0)), ValueError, "padding 32"),
}


@pytest.mark.parametrize("case", BAD)
def test_refused(case):
    call, error, words = BAD[case]
    with pytest.raises(error, match=words):
        call()


def test_codes_for_nan_and_unused_codes_are_found():
    q = quantize(jnp.ones((32, 1)), "fp8_e4m3")
    with pytest.raises(ValueError, match="no finite e4m3"):
        check(dataclasses.replace(q, codes=jnp.full((32, 1), 127, jnp.uint8)))
    q = quantize(jnp.ones((32, 1)), "int4_narrow")
    with pytest.raises(ValueError, match="int4_narrow"):
        check(dataclasses.replace(q, codes=jnp.full((32, 1), -8, jnp.int8)))
    q = quantize(jnp.ones((32, 1)), "int4_affine")
    with pytest.raises(ValueError, match="zero points"):
        check(dataclasses.replace(q, offset=jnp.full((1, 1), 16, jnp.uint8)))


def test_a_table_per_batch_entry_is_accepted_and_used():
    w = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16, 3)).astype(np.float32))
    q = quantize(w, "nf4_f32", batch_axes=1)
    table = jnp.tile(jnp.asarray(NF4.values()), (2, 1, 1, 1))
    same = dataclasses.replace(q, table=table)
    check(same)
    np.testing.assert_array_equal(dequantize(same), dequantize(q))
    other = dataclasses.replace(q, table=table * jnp.float32([1.0, 0.5]).reshape(2, 1, 1, 1))
    np.testing.assert_array_equal(dequantize(other)[1], dequantize(q)[1] * 0.5)
    with pytest.raises(ValueError, match="ascending"):
        check(dataclasses.replace(q, table=table[..., ::-1]))
