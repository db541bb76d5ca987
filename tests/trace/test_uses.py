from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from qjax.operators.view import View
from qjax.quantization import dequantize, quantize
from qjax.trace.uses import SCANNED, TRACED, uses
from tests import draw
from tests.trace.cases import LAYERS, ONE_PASS, PARAMS, STACK, X, mlp


@pytest.mark.parametrize("name", ONE_PASS)
def test_a_matrix_is_one_however_fn_is_written(name):
    found = uses(ONE_PASS[name], PARAMS, X)
    assert found.targets() == ("a", "b")
    assert [(found.matrix(p).contract_axes, found.matrix(p).output_axes) for p in "ab"] == [((-2,), (-1,))] * 2
    assert found.excluded == {}


@pytest.mark.parametrize("name", LAYERS)
def test_a_stacked_leaf_has_its_layers_as_batch(name):
    use = uses(LAYERS[name], STACK, X).matrix("")
    assert (use.batch_axes, use.contract_axes, use.output_axes) == ((-3,), (-2,), (-1,))
    assert use.matrix_shape == STACK.shape
    assert use.index == ((-3, 0 if name == "python_loop" else SCANNED),)


def test_a_traced_index_is_reported_as_pooling():
    def fn(w, x):
        return lax.fori_loop(0, 3, lambda i, c: jnp.tanh(c @ w["w"][i]), x)

    use = uses(fn, {"w": STACK}, X).matrix("w")
    assert use.index == ((-3, TRACED),)
    assert use.pooled_axes == (-3,)


@pytest.mark.parametrize(
    ("equation", "x_shape", "w_shape", "axes"),
    [
        ("bd,od->bo", (3, 8), (6, 8), ((), (-1,), (-2,))),  # [out, in]: equinox
        ("bd,dhk->bhk", (3, 8), (8, 2, 3), ((), (-3,), (-2, -1))),  # flax attention
        ("bhk,hkd->bd", (3, 2, 3), (2, 3, 8), ((), (-3, -2), (-1,))),
        ("btkh,hkd->btd", (3, 2, 3, 2), (2, 3, 8), ((), (-3, -2), (-1,))),
        ("etd,edf->etf", (4, 3, 8), (4, 8, 6), ((-3,), (-2,), (-1,))),  # experts
        ("etd,def->tef", (4, 3, 8), (8, 4, 6), ((-2,), (-3,), (-1,))),
        ("td,edf->tef", (3, 8), (4, 8, 6), ((), (-2,), (-3, -1))),  # all experts see every token: one Gram
        ("bd,do->bo", (3, 8), (8, 1), ((), (-2,), (-1,))),
    ],
)
def test_storage_layouts_become_matrices_and_return(equation, x_shape, w_shape, axes):
    x, w = draw.normal(0, *x_shape), draw.normal(1, *w_shape)
    use = uses(lambda p, x: jnp.einsum(equation, x, p["w"]), {"w": w}, x).matrix("w")
    assert (use.batch_axes, use.contract_axes, use.output_axes) == axes
    matrix = use.to_matrix(w)
    assert matrix.shape == use.matrix_shape
    np.testing.assert_array_equal(use.from_matrix(matrix), w)
    q = quantize(matrix, "int8", batch_axes=len(use.batch_axes))
    leaf = use.from_matrix(q)
    assert leaf.shape == w.shape
    dense = leaf.dense() if isinstance(leaf, View) else dequantize(leaf)
    np.testing.assert_array_equal(dense, use.from_matrix(dequantize(q)))
    np.testing.assert_array_equal(dequantize(use.to_matrix(leaf)), dequantize(q))


def test_wrong_shapes_name_the_leaf():
    use = uses(mlp, PARAMS, X).matrix("a")
    with pytest.raises(ValueError, match="leaf 'a'"):
        use.to_matrix(jnp.ones((3, 3)))
    with pytest.raises(ValueError, match="leaf 'a'"):
        use.from_matrix(jnp.ones((3, 3)))


def test_leaves_that_read_one_value_form_a_group():
    p = {n: jnp.ones((16, 16)) for n in ("q", "k", "v", "o")}

    def attention(p, x):
        q, k, v = (x.astype(jnp.bfloat16) @ p[n].astype(jnp.bfloat16) for n in "qkv")  # one cast of x for each
        return (q * k * v).astype(jnp.float32) @ p["o"]

    found = uses(attention, p, X)
    assert found.groups() == (("q", "k", "v"), ("o",))
    assert found.matrix("q").tokens == 15


def test_exclusions_have_reasons():
    p = {
        "table": jnp.ones((11, 8)),
        "tied": jnp.ones((7, 8)),
        "norm": jnp.ones(8),
        "router": jnp.ones((8, 4)),
        "experts": jnp.ones((4, 8, 8)),
        "masked": jnp.ones((8, 8)),
        "pair": jnp.ones((8, 8)),
        "slice": jnp.ones((12, 8)),
        "head": jnp.ones((8, 11)),
        "unused": jnp.ones((2, 2)),
        "counts": jnp.ones((3,), jnp.int32),
        "w": jnp.ones((8, 8)),
    }

    def fn(p, tokens):
        x = p["table"][tokens] * p["norm"][None, None] + p["tied"][tokens % 7]
        gate, which = lax.top_k(jax.nn.softmax(x @ p["router"]), 1)
        mixed = jnp.einsum("btd,edf->btef", x, p["experts"])
        x = x + gate * jnp.take_along_axis(mixed, which[..., None], 2)[:, :, 0]
        x = x @ (p["masked"] * 2.0) + x @ (p["pair"] @ p["w"]) + x @ p["slice"][:8]
        return x @ p["head"], x @ p["tied"].T, x @ p["w"]

    found = uses(fn, p, jnp.zeros((2, 3), jnp.int32))
    assert found.targets() == ("experts",)
    reasons = found.excluded
    assert reasons["table"].startswith("an embedding")
    assert reasons["tied"].startswith("an embedding tied")
    assert "used by broadcast_in_dim" in reasons["norm"] or "used by mul" in reasons["norm"]
    assert reasons["router"].startswith("a router")
    assert "mul" in reasons["masked"]
    assert "dot_general" in reasons["pair"]
    assert "dot_general" in reasons["w"]
    assert "slice" in reasons["slice"]
    assert reasons["head"].startswith("an untied head: as many outputs as 'table'")
    assert reasons["unused"] == "never used"
    assert "counts" not in reasons
    assert found.targets("head") == ("head",)
    assert found.matrix("table").matrix_shape == (8, 11)
    with pytest.raises(ValueError, match="'norm'"):
        found.targets("norm")
    with pytest.raises(ValueError, match="matched no leaf"):
        found.targets("nothing")


def test_convolutions_are_matrices_over_windows_and_depthwise_ones_are_not():
    def conv(groups):
        def fn(w, x):
            numbers = ("NHWC", "HWIO", "NHWC")
            return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=numbers, feature_group_count=groups)

        return fn

    x = jnp.ones((2, 4, 4, 6))
    use = uses(lambda p, x: conv(1)(p["w"], x), {"w": jnp.ones((3, 3, 6, 5))}, x).matrix("w")
    assert (use.contract_axes, use.output_axes, use.tokens) == ((-4, -3, -2), (-1,), 32)
    found = uses(lambda p, x: conv(6)(p["w"], x), {"w": jnp.ones((3, 3, 1, 6))}, x)
    assert found.excluded == {"w": "a depthwise convolution"}


def test_ragged_products_batch_over_experts():
    use = uses(
        lambda p, x: lax.ragged_dot(x, p["w"], jnp.array([3, 5])), {"w": jnp.ones((2, 6, 4))}, jnp.ones((8, 6))
    ).matrix("w")
    assert (use.batch_axes, use.contract_axes, use.output_axes) == ((-3,), (-2,), (-1,))


def test_nothing_is_computed_and_shapes_suffice():
    shapes = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), PARAMS)
    big = jax.ShapeDtypeStruct((1 << 20, 1 << 10, 16), jnp.float32)
    assert uses(mlp, shapes, big).matrix("a").tokens == 1 << 30


def test_operators_are_seen_in_their_stored_layout():
    plain = uses(mlp, PARAMS, X)
    q = {"a": quantize(PARAMS["a"], "int8"), "b": View.of(quantize(PARAMS["b"], "int4_g16"))}
    assert {p: plain[p] for p in plain} == {p: uses(mlp, q, X)[p] for p in plain}
