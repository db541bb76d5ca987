"""The integer kernel for TPUs in interpret mode against numpy's int64: shapes, extremes, races, refusals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax.integer import execution, integer_matmul
from qjax.kernels.tpu import integer_products, tiles
from qjax.kernels.tpu.tiles import Blocks
from qjax.operators import rounded_inputs
from qjax.quantization import quantize
from tests import draw


def problem(dtype, M, K, N):
    """Codes with both extremes, and scales of powers of two, so that scaling is exact as well."""
    top = jnp.iinfo(dtype).max + 1
    x, w = (np.array(draw.integers(i, -top, top, *shape)) for i, shape in enumerate(((M, K), (K, N))))
    x[0], w[:, 0] = -top, -top  # the largest sum there is
    row, column = (2.0 ** np.array(draw.integers(i, -3, 3, n)) for i, n in ((2, M), (3, N)))
    expected = (x.astype(np.int64) @ w.astype(np.int64)).astype(np.float32) * row[:, None] * column
    scales = jnp.asarray(row, jnp.float32), jnp.asarray(column, jnp.float32)
    return jnp.asarray(x, dtype), jnp.asarray(w, dtype), *scales, expected


@pytest.mark.parametrize(
    ("dtype", "M", "K", "N", "tiling"),
    [
        (jnp.int8, 33, 512, 256, Blocks(32, 128, 256)),  # ragged rows; several blocks each way
        (jnp.int8, 1, 384, 128, None),
        (jnp.int4, 20, 256, 128, None),
    ],
)
def test_equal_to_int64(dtype, M, K, N, tiling):
    *arguments, expected = problem(dtype, M, K, N)
    y = integer_products.matmul(*arguments, tiling, True)
    assert y.shape == (M, N) and y.dtype == jnp.float32
    np.testing.assert_array_equal(y, expected)
    np.testing.assert_array_equal(integer_products.reference(*arguments), expected)


@pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason=f"the interpreter of races needs jax 0.12: {jax.__version__}"
)
def test_no_races_and_nothing_uninitialised():
    from jax.experimental.pallas import tpu as pltpu

    *arguments, expected = problem(jnp.int8, 32, 256, 256)
    look = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2)
    np.testing.assert_array_equal(integer_products.matmul(*arguments, Blocks(32, 128, 128), look), expected)


def test_what_does_not_fit_is_refused():
    x, w, row, column, _ = problem(jnp.int8, 4, 256, 128)
    assert integer_products.matmul(x[:0], w, row[:0], column).shape == (0, 128)
    assert integer_products.refuse(2**18, 128, 8) == "the sum of 262144 products of int8 may overflow int32"
    for arguments, match in (
        ((x, w[:, :100], row, column[:100]), "100 outputs are no multiple of 128"),
        ((x[:, :200], w[:200], row, column), "200 inputs are no multiple of 128"),
        ((x, w.astype(jnp.int4), row, column), "do not fit"),
        ((x, w, row, column, Blocks(32, 128, 96)), "do not divide"),
    ):
        with pytest.raises(ValueError, match=match):
            integer_products.matmul(*arguments)


@pytest.mark.parametrize(("left", "right", "bits"), [("int8_f32", "int8_narrow_f32", 8), ("int4_f32", "int4_f32", 4)])
def test_an_integer_product_goes_through_it(left, right, bits):
    x = quantize(jnp.asarray(draw.normal(0, 5, 128)), left, axis=-1)
    w = quantize(jnp.asarray(draw.normal(1, 128, 128)), right)
    sides = execution._operands(x, w)
    assert execution._refuse_kernel(x, w, None, sides[0]) == "it is compiled for tpu, not cpu"
    np.testing.assert_allclose(execution._by_codes(*sides, bits, True, interpret=True), integer_matmul(x, w), rtol=1e-6)
    with pytest.raises(ValueError, match="'mosaic' cannot run: it is compiled for tpu"):
        integer_matmul(x, w, implementation="mosaic")


@pytest.mark.parametrize(
    ("chip", "M", "taken"), [("7x", 512, False), ("v6e", 3, False), ("v6e", 100, True), (None, 3, True)]
)
def test_xla_is_left_what_it_multiplies_sooner(monkeypatch, chip, M, taken):
    """Unless the kernel is named; the results are the same."""
    monkeypatch.setattr(tiles, "chip", lambda: chip)
    x, w = quantize(jnp.ones((M, 128)), "int8", axis=-1), quantize(jnp.ones((128, 128)), "int8")
    sides = execution._operands(x, w)
    for named in (False, True):
        traced = jax.make_jaxpr(lambda *sides, named=named: execution._by_codes(*sides, 8, named, True))(*sides)
        assert ("pallas_call" in str(traced)) == (taken or named)
    assert ("pallas_call" in str(jax.make_jaxpr(lambda x: rounded_inputs.integers(x, w, True))(x))) == taken
    expected = execution._by_codes(*sides, 8, True, True)
    np.testing.assert_array_equal(execution._by_codes(*sides, 8, False, True), expected)
    np.testing.assert_array_equal(rounded_inputs.integers(x, w, True), expected)
