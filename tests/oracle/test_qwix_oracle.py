"""Arrays that Qwix reads from us, and that we read from it: the same numbers bit for bit."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax.io import from_qwix, to_qwix
from tests import draw

pytestmark = pytest.mark.oracle


@pytest.mark.parametrize("fmt", ["int8_channel_f32", "int4_g8_f32", "int4_g8_affine_f32", "fp8_e4m3_f32"])
def test_qwix_reads_ours(fmt):
    import qwix

    q = qjax.quantize(draw.normal(0, 32, 8), fmt)
    theirs = qwix.QArray(**to_qwix(q)._asdict())
    np.testing.assert_array_equal(qwix.dequantize(theirs), qjax.dequantize(q))
    np.testing.assert_array_equal(from_qwix(theirs).codes, q.codes)


@pytest.mark.parametrize(
    ("qtype", "tiles", "method"),
    [
        ("int8", {}, "absmax"),
        ("int4", {0: 8}, "minmax"),
        ("int4", {0: 8}, "absmax"),
        ("float8_e4m3fn", {0: 16}, "absmax"),
    ],
)
def test_we_read_qwixs(qtype, tiles, method):
    import qwix

    w = draw.normal(1, 32, 8)
    theirs = qwix.quantize(w, jnp.dtype(qtype), channelwise_axes=[1], tiled_axes=tiles, calibration_method=method)
    ours = from_qwix(theirs)
    np.testing.assert_array_equal(qjax.dequantize(ours), qwix.dequantize(theirs))
    again = to_qwix(ours)
    np.testing.assert_array_equal(again.qvalue.astype(jnp.float32), theirs.qvalue.astype(jnp.float32))
