"""Rows of a quantized leaf, as an embedding gathers them: exact in every layout, and only they are unpacked."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from qjax import dispatch
from qjax.operators.packed import LAYOUTS, pack
from qjax.quantization import dequantize, quantize
from tests import draw

ROWS_OF = {
    "cpu.words.1": "int4_g64_affine",
    "cpu.nibbles.1": "int4_g48_minimum",
    "tpu.int2.1": "int2_g64",
    "tpu.int4.2": "int4_g64",
    "tpu.int8.1": "int8_g64",
    "tpu.e2m1.1": "nvfp4",
    "tpu.e2m1_pairs.1": "mxfp4",
    "tpu.e4m3.1": "fp8_e4m3",
    "tpu.table4.1": "nf4_g64",
    "gpu.wgmma_words.1": "int4_g64_narrow_f32",
    "gpu.wgmma.int8.1": "int8_g64",
    "gpu.wgmma.e4m3.1": "fp8_e4m3_tensor",
    "gpu.block_scaled.1": "mxfp4",
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_rows_are_those_of_the_unpacked_array_and_nothing_else_is_unpacked(layout):
    K, N = (192, 512) if "nibbles" in layout else (256, 512)
    q = quantize(draw.normal(0, 2, K, N), ROWS_OF[layout], axis=-2, batch_axes=1)
    p = pack(q, layout)
    for ids in (jnp.array([[3, 511], [3, 130]]), jnp.array([-1]), jnp.zeros((0, 2), jnp.int32)):
        found = dispatch.rows(p, ids)
        np.testing.assert_array_equal(found, jnp.swapaxes(dequantize(q), -1, -2)[..., ids, :])
        np.testing.assert_array_equal(found, dispatch.rows(q, ids))
    sizes = [
        v.aval.size
        for eqn in equations(jax.make_jaxpr(dispatch.rows)(p, jnp.array([5])).jaxpr)
        for v in eqn.outvars
        if eqn.primitive.name != "reshape"
    ]
    assert max(sizes) < p.codes.size


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from equations(inner)


@pytest.mark.parametrize("prepare", [lambda w: w, lambda w: quantize(w, "int8_tensor"), lambda w: quantize(w, "int8")])
def test_rows_outside_are_nan_as_of_an_array(prepare):
    found = dispatch.rows(prepare(draw.normal(0, 64, 32)), jnp.array([31, 32, -32, -33]))
    np.testing.assert_array_equal(np.isnan(found).all(1), [False, True, False, True])
    assert not np.isnan(found[::2]).any()
