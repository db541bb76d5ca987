"""Columns of bytes by their numbers, interpreted, against numpy: one and many, repeated, outside, races."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax import dispatch
from qjax.kernels.tpu import column_gather
from qjax.operators import narrow_codes
from qjax.operators.packed import LAYOUTS, pack
from qjax.quantization import quantize
from tests import draw


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.uint8, jnp.float8_e4m3fn])
@pytest.mark.parametrize("ids", [[3], [0, 383, 129, 129, 5], [*range(383, 83, -1)], []], ids=len)
def test_equal_to_numpy(ids, dtype):
    x = jax.lax.bitcast_convert_type(jnp.asarray(draw.integers(0, -128, 128, 64, 384), jnp.int8), dtype)
    y = column_gather.take(x, jnp.asarray(ids, jnp.int32), True)
    assert y.dtype == dtype
    expected = np.asarray(x).view(np.uint8)[:, ids]
    np.testing.assert_array_equal(np.asarray(y).view(np.uint8), expected)


def test_ids_outside_are_clipped():
    x = jnp.asarray(draw.integers(0, -128, 128, 32, 256), jnp.int8)
    ids = jnp.array([-5, 256, 2**31 - 1])
    np.testing.assert_array_equal(column_gather.take(x, ids, True), x[:, jnp.array([0, 255, 255])])
    np.testing.assert_array_equal(column_gather.take(x, ids, True), column_gather.reference(x, ids))


def test_few_of_a_vocabulary_are_worth_it_and_many_are_not():
    assert column_gather.prefer(288, 49152, 16) and column_gather.prefer(2048, 128256, 512)
    assert not column_gather.prefer(288, 49152, 512) and not column_gather.prefer(128, 256, 4)


@pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason=f"the interpreter of races needs jax 0.12: {jax.__version__}"
)
def test_no_races_and_nothing_read_that_was_not_written():
    from jax.experimental.pallas import tpu as pltpu

    x = jnp.asarray(draw.integers(0, -128, 128, 32, 256), jnp.int8)
    ids = jnp.array([200, 7, 7, 255], jnp.int32)
    look = pltpu.InterpretParams(detect_races=True, num_cores_or_threads=2, out_of_bounds_reads="raise")
    np.testing.assert_array_equal(column_gather.take(x, ids, look), x[:, ids])


@pytest.mark.parametrize(
    ("rows", "N", "dtype", "match"),
    [(32, 200, jnp.int8, "200 columns"), (48, 128, jnp.int8, "48 rows"), (32, 128, jnp.float32, "not of bytes")],
)
def test_what_does_not_fit_is_refused(rows, N, dtype, match):
    with pytest.raises(ValueError, match=match):
        column_gather.take(jnp.zeros((rows, N), dtype), jnp.array([0]))


@pytest.mark.parametrize(("fmt", "layout"), [("int4_g64", "tpu.int4.2"), ("fp8_e4m3", "tpu.e4m3.1")])
def test_rows_of_a_packed_leaf_through_the_kernel(fmt, layout, monkeypatch):
    q = quantize(draw.normal(0, 2, 256, 256), fmt, axis=-2, batch_axes=1)
    ids = jnp.array([[7, -1], [256, 130]])
    whole = LAYOUTS[layout]._replace(columns=lambda codes, ids: narrow_codes.columns(codes, ids, interpret=True))
    monkeypatch.setitem(LAYOUTS, layout, whole)
    found = dispatch.rows(pack(q, layout), ids)
    np.testing.assert_array_equal(found, dispatch.rows(q, ids))
    assert np.isnan(found[:, 1, 0]).all() and not np.isnan(found[:, 0]).any()
