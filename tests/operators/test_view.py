"""View: storage layouts against numpy, lazily and through every rule."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax import dispatch
from qjax.operators import Pre, Quantize, View, as_matrix
from qjax.operators.atoms import reshape, whole
from qjax.quantization import dequantize, quantize
from tests.draw import normal


def close(a, b):
    np.testing.assert_allclose(np.asarray(a), np.asarray(b), rtol=1e-5, atol=1e-5)


def heads() -> tuple[View, np.ndarray]:
    """A [6, 4] matrix stored as (out 4, heads 2, dim 3)."""
    op = normal(0, 6, 4)
    return View.store(op, (4, 2, 3), (1, 2), (0,)), np.asarray(op).reshape(2, 3, 4).transpose(2, 0, 1)


def experts() -> tuple[View, np.ndarray]:
    """Three [6, 4] matrices stored as (in 6, experts 3, out 4)."""
    op = normal(1, 3, 6, 4)
    return View.store(op, (6, 3, 4), (0,), (2,)), np.asarray(op).transpose(1, 0, 2)


def test_layouts_stay_lazy_and_exact():
    v, w = heads()
    assert v.shape == w.shape and bool((v.dense() == w).all())
    for order in ((1, 0, 2), (2, 1, 0)):
        assert bool((v.permute(order).dense() == w.transpose(order)).all())
    for shape in ((2, 2, 6), (4, 6), (4, 1, 2, 3), (4, 2, 3, 1, 1)):
        reshaped = v.reshape(shape)
        assert reshaped is not None and bool((reshaped.dense() == w.reshape(shape)).all())
    assert v.reshape((3, 8)) is None and v.reshape((5, 5)) is None
    assert v.astype(jnp.bfloat16).dense().dtype == jnp.bfloat16 and v.astype(jnp.bfloat16).op is v.op


@pytest.mark.parametrize("fmt", [None, "int4_g3_f32"])
def test_dots_against_einsum(fmt):
    v, w = heads()
    if fmt:
        v = View(quantize(v.op, fmt), v.axes, v.dtype)
        w = np.asarray(v.dense())
    x = normal(2, 5, 2, 3)
    close(v.dot(x, ((1, 2), (1, 2))), np.einsum("thd,ohd->to", x, w))
    close(v.dot(normal(3, 5, 4), ((0,), (1,))), np.einsum("to,ohd->thd", normal(3, 5, 4), w))
    turned, x = v.permute((1, 0, 2)), normal(4, 5, 3, 7, 2)
    close(turned.dot(x, ((2, 0), (1, 3)), view_first=True), np.einsum("tdsh,ohd->ots", x, w))
    assert v.dot(normal(5, 5, 2), ((1,), (1,))) is None  # part of the inputs only
    close(v.take(jnp.array([[1, 2], [0, 0]])), w[np.array([[1, 2], [0, 0]])])
    close(v.slice(0, 1, 2).dense(), w[1:3])


def test_batch_axes_may_be_batched_free_or_contracted():
    v, w = experts()
    x = normal(2, 5, 6)
    close(v.dot(x, ((0,), (1,))), np.einsum("tk,ken->ten", x, w))
    x = normal(3, 3, 5, 6)
    close(v.dot(x, ((0,), (2,)), ((1,), (0,))), np.einsum("etk,ken->etn", x, w))
    x = normal(4, 5, 3, 6)
    close(v.dot(x, ((1, 0), (1, 2))), np.einsum("tek,ken->tn", x, w))
    close(v.slice(1, 1, 2).dense(), w[:, 1:3])
    close(v.slice(2, 1, 2).dense(), w[..., 1:3])
    one = v.slice(1, 2, 1).reshape((6, 4))
    close(one.dot(normal(2, 5, 6), ((0,), (1,))), normal(2, 5, 6) @ w[:, 2])


def test_scan_and_vmap_slice_a_view():
    v = View.store(quantize(normal(0, 3, 6, 4), "int8", batch_axes=1), (3, 4, 2, 3), (2, 3), (1,))
    layers = jax.lax.scan(lambda c, layer: (c, layer.dense()), 0, v)[1]
    close(layers, v.dense())
    x = normal(1, 3, 5, 2, 3)
    y = jax.vmap(lambda layer, x: layer.dot(x, ((1, 2), (1, 2))))(v, x)
    close(y, np.einsum("lthd,lohd->lto", x, v.dense()))
    close(dispatch.index(v, 1).dense(), v.dense()[1])


def test_bare_quantized_arrays_of_any_layout():
    w = normal(0, 128, 2, 4)
    for fmt in ("int4_g64", "nf4_g64_f32", "nvfp4", "int3_g64_affine", "int8"):
        q = quantize(w, fmt, axis=-3)
        m = as_matrix(q, (0,), (1, 2))
        assert m is not None and bool((dequantize(m) == dequantize(q).reshape(128, 8)).all())
        x = normal(1, 3, 128)
        close(View.of(q).dot(x, ((0,), (1,))), (x @ dequantize(q).reshape(128, 8)).reshape(3, 2, 4))
    q = quantize(w, "int4_g64", axis=-3)
    assert as_matrix(q, (2,), (1, 0)) is not None and as_matrix(q, (1, 0), (2,)) is not None
    assert as_matrix(q, (0, 1), (2,)) is None  # blocks of 64 along an axis that is not innermost
    assert View.of(q).dot(normal(1, 3, 128, 2), ((0, 1), (1, 2))) is None
    per_channel = quantize(normal(2, 6, 2, 4), "int8", axis=(-3, -2))
    m = as_matrix(per_channel, (0, 1), (2,))
    assert m is not None and bool((dequantize(m) == dequantize(per_channel).reshape(12, 4)).all())
    padded = quantize(normal(3, 5, 2, 3), "int4_g4", axis=-3)
    m = as_matrix(padded, (0,), (1, 2))
    assert m is not None and m.shape == (5, 6) and bool((dequantize(m) == dequantize(padded).reshape(5, 6)).all())
    layers = as_matrix(quantize(normal(4, 64, 3, 4), "int4_g64", axis=-3), (0,), (2,))
    assert layers is not None and layers.shape == (3, 64, 4)


def test_quantizers_survive_layouts():
    v = View.store(Pre(Quantize.dynamic("int8"), normal(0, 6, 4)), (4, 6), (1,), (0,))
    x = normal(1, 3, 6)
    close(v.dot(x, ((1,), (1,))), Quantize.dynamic("int8").apply(x) @ v.op.op)
    with pytest.raises(TypeError, match="quantizes activations"):
        v.dense()
    with pytest.raises(TypeError, match="quantizes activations"):
        v.dot(normal(2, 3, 4), ((0,), (1,)))  # used the other way round, the quantizer would be lost


def test_reshape_of_atoms_drops_and_keeps_ones():
    assert reshape(whole((1, 6)), (6,)) == (((-1, 1, 6),),)
    assert reshape(whole((1, 6)), (1, 2, 3)) == (((-2, 1, 1),), ((-1, 3, 2),), ((-1, 1, 3),))
    assert reshape(whole((4, 6)), (24,)) == (((-2, 1, 4), (-1, 1, 6)),)
    assert reshape(whole((4, 6)), (3, 8)) is None
