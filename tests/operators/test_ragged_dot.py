"""Rows sorted by expert through a batch of matrices: every kind of leaf, the kernel's layouts, what refuses."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax.operators import Pre, Quantize, narrow_codes
from qjax.operators.operator import NotAffine
from qjax.operators.preparation import prepare
from tests import draw

SIZES = (2, 0, 3)  # of six rows: the last has no expert


def loop(x, w, sizes=SIZES):
    y, start = np.zeros((x.shape[0], w.shape[-1])), 0
    for e, size in enumerate(sizes):
        y[start : start + size] = np.asarray(x, np.float64)[start : start + size] @ np.asarray(w, np.float64)[e]
        start += size
    return y


def problem(fmt="int4_g64", K=128, N=128):
    w = jnp.asarray(draw.normal(0, 3, K, N))
    return jnp.asarray(draw.normal(1, 6, K)), w, qjax.quantize(w, fmt, batch_axes=1), jnp.array(SIZES)


def test_every_kind_of_leaf_takes_runs_of_rows():
    x, w, q, sizes = problem()
    for leaf, dense in (
        (w, w),
        (q, qjax.dequantize(q)),
        (prepare({"w": q}, target="cpu")["w"], qjax.dequantize(q)),
        (prepare({"w": q}, target="tpu")["w"], qjax.dequantize(q)),
    ):
        np.testing.assert_allclose(qjax.ragged_dot(x, leaf, sizes), loop(x, dense), rtol=1e-5, atol=1e-5)
    assert qjax.ragged_dot(x.astype(jnp.bfloat16), q, sizes, dtype=jnp.float32).dtype == jnp.float32


@pytest.mark.parametrize("fmt", ["int4_g64", "int8", "fp8_e4m3_channel", "mxfp4", "nvfp4"])
def test_the_kernel_reads_the_layout(fmt):
    """Interpreted: scales of groups, of columns, and NVFP4's that are common to an expert."""
    x, _, q, sizes = problem(fmt, 160 if fmt == "int4_g64" else 128)  # 160 is padded to three groups
    packed = prepare({"w": q}, target="tpu")["w"]
    assert packed.layout.startswith("tpu.")
    x = x.astype(jnp.bfloat16)
    y = narrow_codes.run_experts(x, sizes, packed, jnp.float32, interpret=True)
    np.testing.assert_allclose(y, loop(x, qjax.dequantize(q)), rtol=1e-5, atol=1e-4)


def test_a_traced_mixture_multiplies_prepared_experts():
    x, _, q, sizes = problem()

    def model(params, x):
        return jax.lax.ragged_dot(x, params["w"], sizes)

    packed = prepare({"w": q}, target="tpu")
    np.testing.assert_allclose(qjax.quantized(model)(packed, x), loop(x, qjax.dequantize(q)), rtol=1e-5, atol=1e-5)
    slope = jax.grad(lambda x: qjax.quantized(model)(packed, x).sum())(x)
    rows = np.repeat(np.asarray(qjax.dequantize(q)).sum(-1), SIZES, axis=0)
    np.testing.assert_allclose(slope[: len(rows)], rows, rtol=1e-4, atol=1e-5)
    assert (np.asarray(slope)[len(rows) :] == 0).all()


def test_what_does_not_fit_raises():
    x, w, q, sizes = problem()
    packed = prepare({"w": q}, target="tpu")["w"]
    with pytest.raises(ValueError, match=r"'mosaic' cannot run .*compiled for tpu, not cpu"):
        qjax.ragged_dot(x, packed, sizes, implementation="mosaic")
    for leaf in (w, q):
        with pytest.raises(ValueError, match="no implementation 'mosaic'"):
            qjax.ragged_dot(x, leaf, sizes, implementation="mosaic")
    with pytest.raises(ValueError, match=r"expected \[tokens, K\], \[E\] and \[E, K, N\]"):
        qjax.ragged_dot(x, w[0], sizes)
    with pytest.raises(ValueError, match=r"sizes \(2,\)"):
        qjax.ragged_dot(x, w, sizes[:2])
    with pytest.raises(NotAffine, match="quantizes activations"):
        qjax.ragged_dot(x, Pre(Quantize.dynamic("int8"), q), sizes)
    with pytest.raises(TypeError, match="floating"):
        qjax.ragged_dot(jnp.ones((6, 128), jnp.int32), w, sizes)
    table = prepare({"w": qjax.quantize(w, "nf4_g64", batch_axes=1)}, target="tpu")["w"]
    why = narrow_codes.refuse_experts(table, 6, "tpu", jnp.bfloat16)
    assert why is not None
    assert "looked up" in why or jax.__version_info__ < (0, 12)
