"""Arrays in Qwix's fields and back; `tests/oracle/test_qwix_oracle.py` has Qwix read and write them."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax.io import from_qwix, to_qwix
from tests import draw

FORMATS = (
    "int8_channel_f32",
    "int4_g8",
    "int4_g8_affine_f32",
    "int2_g8_f32",
    "fp8_e4m3",
    "fp8_e5m2",
    "fp4_e2m1_g16_f32",
)


@pytest.mark.parametrize("fmt", FORMATS)
def test_there_and_back(fmt):
    q = qjax.quantize(draw.normal(0, 3, 32, 8), fmt, batch_axes=1)
    fields = to_qwix(q)
    assert fields.qvalue.shape == q.shape and fields.qvalue.dtype == fields.qtype
    tile = 32 // fields.scale.shape[1]
    scale = jnp.repeat(fields.scale.astype(jnp.float32), tile, axis=1)
    values = fields.qvalue.astype(jnp.float32)
    if fields.zero_point is not None:
        values = values - jnp.repeat(fields.zero_point.astype(jnp.float32), tile, axis=1)
    np.testing.assert_array_equal(values * scale, qjax.dequantize(q))
    back = from_qwix(fields)
    np.testing.assert_array_equal(back.codes, q.codes)
    np.testing.assert_array_equal(qjax.dequantize(back), qjax.dequantize(q))
    assert back.meta.block == q.meta.block and back.meta.offset == q.meta.offset


@pytest.mark.parametrize("fmt", ["int3_g8", "nf4_g8", "nvfp4", "int4_g8_minimum_f32", "int4_g5"])
def test_what_qwix_cannot_say(fmt):
    with pytest.raises(ValueError, match="Qwix holds integers"):
        to_qwix(qjax.quantize(draw.normal(0, 32, 8), fmt))


def test_what_has_no_counterpart():
    fields = to_qwix(qjax.quantize(draw.normal(0, 32, 8), "int8_channel_f32"))
    with pytest.raises(ValueError, match="values of int32 have no element"):
        from_qwix(fields._replace(qtype=np.dtype("int32")))
    with pytest.raises(ValueError, match="do not tile"):
        from_qwix(fields._replace(scale=jnp.ones((3, 8))))
