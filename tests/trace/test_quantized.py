from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from qjax.dispatch import dense
from qjax.operators.by_use import ByUse
from qjax.operators.maps.quantize import Quantize
from qjax.operators.operator import NotAffine
from qjax.operators.pre import Pre
from qjax.operators.stacked import Stacked
from qjax.operators.view import View
from qjax.quantization import dequantize, quantize
from qjax.trace.paths import is_leaf
from qjax.trace.quantized import Dequantized, quantized
from qjax.trace.uses import uses
from tests import draw
from tests.trace.cases import LAYERS, ONE_PASS, PARAMS, STACK, X, hidden, keeps_jvp, keeps_vjp, mlp

Q = {"a": quantize(PARAMS["a"], "int4_g16"), "b": quantize(PARAMS["b"], "int8")}


def array(leaf):
    return leaf.dense() if isinstance(leaf, View) else dense(leaf) if is_leaf(leaf) else leaf


def plain(tree):
    return jax.tree.map(array, tree, is_leaf=is_leaf)


def close(a, b, tolerance=1e-5):
    def compare(u, v):
        u, v = np.asarray(u, np.float64), np.asarray(v, np.float64)
        np.testing.assert_allclose(u, v, rtol=0, atol=tolerance * max(np.abs(v).max(initial=0), 1e-3))

    jax.tree.map(compare, a, b)


def agrees(fn, params, *args, fallbacks=(), tolerance=1e-5):
    """quantized(fn) equals fn on the dequantized tree, in one program, with exactly these dequantizations."""
    log = []
    run = quantized(fn, strict=not fallbacks, log=log)
    got, want = jax.jit(lambda params, *args: (run(params, *args), fn(plain(params), *args)))(params, *args)
    close(got, want, tolerance)
    assert [(path, primitive) for path, primitive, _ in log] == list(fallbacks)


@pytest.mark.parametrize("name", [n for n in ONE_PASS if not n.startswith("custom")])
def test_products_are_taken_as_stored(name):
    agrees(ONE_PASS[name], Q, X)


@pytest.mark.parametrize("format", ["int8", "int4_g8", "nf4_g16"])
@pytest.mark.parametrize("name", LAYERS)
def test_stacked_layers(name, format):
    agrees(LAYERS[name], quantize(STACK, format, batch_axes=1), X)


@pytest.mark.parametrize(
    "fn",
    [
        lambda w, x: x @ w.T,
        lambda w, x: w @ jnp.swapaxes(x[0], 0, 1),
        lambda w, x: jnp.einsum("oi,...i->...o", w, x),
        lambda w, x: jax.vmap(jax.vmap(lambda v: w @ v))(x),
        lambda w, x: x @ jnp.swapaxes(w, 0, 1).reshape(16, 4, 8).reshape(16, 32),
        lambda w, x: x.astype(jnp.bfloat16).astype(jnp.float32) @ w.astype(jnp.float32).T,
        lambda w, x: x @ lax.stop_gradient(w).T,
        lambda w, x: [x @ part.T for part in jnp.split(w, 2, axis=0)],
        lambda w, x: x @ w[:8].T,
    ],
)
def test_transposed_storage(fn):
    agrees(fn, quantize(PARAMS["a"].T, "int8", axis=-1), X)


def test_head_split_kernels():
    w, o = draw.normal(4, 16, 2, 8), draw.normal(5, 2, 8, 16)

    def attention(p, x):
        heads = jnp.einsum("btd,dhk->bthk", x, p["w"])
        return jnp.einsum("btkh,khd->btd", jnp.swapaxes(heads, 2, 3), jnp.swapaxes(p["o"], 0, 1))

    params = {"w": w, "o": o}
    found = uses(attention, params, X)
    q = {n: found.matrix(n).from_matrix(quantize(found.matrix(n).to_matrix(params[n]), "int4_g8")) for n in params}
    agrees(attention, q, X)


def test_fused_projections_concatenated():
    q = {"a": quantize(PARAMS["a"], "int8"), "c": quantize(PARAMS["a"] * 2, "int4_g16")}
    agrees(lambda p, x: x @ jnp.concatenate([p["a"], p["c"]], axis=1), q, X)


def test_mixed_formats_on_a_scanned_stack():
    kinds = ("int4_g8", "int4_g8", "int8", "int4_g16", "int8")
    layers = jnp.concatenate([STACK, STACK[:2] * 1.5])
    mixed = Stacked(tuple(quantize(w, k) for w, k in zip(layers, kinds, strict=True)))

    def fn(reverse):
        def run(p, x):
            return lax.scan(lambda c, w: (jnp.tanh(c @ w["w"] + w["b"][None, None]), c.sum(-1)), x, p, reverse=reverse)

        return run

    params = {"w": mixed, "b": jnp.linspace(-1, 1, 5)[:, None] * jnp.ones((5, 16))}
    for reverse in (False, True):
        agrees(fn(reverse), params, X)
    agrees(lambda p, x: jnp.tanh(jnp.tanh(x @ p[0]) @ p[2]), mixed, X)  # and one by one


def test_experts_and_embeddings():
    experts = draw.normal(4, 3, 16, 8)
    agrees(lambda w, x: jnp.einsum("etd,edf->tef", x, w), quantize(experts, "int8", batch_axes=1), X)
    agrees(lambda w, x: jnp.einsum("btd,edf->btef", x, w), quantize(experts, "int8", batch_axes=1), X)
    tokens = jnp.array([[1, 2, -1], [10, 0, 3]])
    table = quantize(draw.normal(5, 11, 16), "int4_g8", axis=-1)
    agrees(lambda e, t: e[t], table, tokens)
    agrees(lambda e, t: jnp.take(e, t, axis=0) @ e.T, table, tokens)
    agrees(lambda e, t: e[3] + e[t[0, 0]], table, tokens)
    out = quantized(lambda e, t: jnp.take(e, t, axis=0))(table, jnp.array([60]))
    assert jnp.isnan(out).all()  # as for arrays


def test_a_float_table_never_exists():
    table = quantize(jnp.ones((4096, 64)), "int8", axis=-1)
    text = jax.jit(quantized(lambda e, t: e[t])).lower(table, jnp.array([1, 2])).compile().as_text()
    assert "f32[4096,64]" not in text
    assert "f32[64,4096]" not in text


def test_tied_leaves_by_use():
    table = draw.normal(5, 11, 16)

    def fn(p, t):
        return jnp.tanh(p["e"][t]) @ p["e"].T

    tokens = jnp.array([[1, 2, 7]])
    use = uses(fn, {"e": table}, tokens).matrix("e")
    matrix = use.to_matrix(table)
    tied = ByUse(take=quantize(matrix, "int8"), dot=quantize(matrix, "int4_g8"))
    got = quantized(fn, strict=True)({"e": use.from_matrix(tied)}, tokens)
    close(got, jnp.tanh(dequantize(tied.take).T[tokens]) @ dequantize(tied.dot))


def test_convolutions_and_ragged_products():
    image, kernel = draw.normal(4, 2, 5, 5, 4), draw.normal(5, 3, 3, 4, 6)

    def conv(w, x):
        return lax.conv_general_dilated(x, w, (2, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    use = uses(conv, kernel, image).matrix("")
    op = quantize(use.to_matrix(kernel), "int4_g12")
    agrees(conv, use.from_matrix(op), image)
    active = use.from_matrix(Pre(Quantize("int8"), op))  # activations quantized a patch at a time: not affine
    close(quantized(conv, strict=True)(active, image), conv(array(use.from_matrix(op)), image), 2e-2)

    def ragged(w, x):
        return lax.ragged_dot(x, w, jnp.array([2, 0, 3]))

    experts, rows = quantize(draw.normal(6, 3, 16, 8), "int8", batch_axes=1), X[0]
    agrees(ragged, experts, rows)
    close(quantized(ragged, strict=True)(Pre(Quantize("int8"), experts), rows), ragged(array(experts), rows), 2e-2)


def test_gradients_pass_through_and_reach_float_leaves():
    def loss(p, x):
        return (mlp(p, x) ** 2).sum()

    close(jax.grad(lambda x: quantized(loss)(Q, x))(X), jax.grad(lambda x: loss(plain(Q), x))(X), 1e-4)
    close(quantized(jax.grad(loss, 1))(Q, X), jax.grad(loss, 1)(plain(Q), X), 1e-4)  # the gradient inside
    q = quantize(STACK, "int8_f32", batch_axes=1)

    def through_scales(scales, fn):
        return (fn(dataclasses.replace(q, scales=scales), X) ** 2).sum()

    got = jax.grad(lambda s: through_scales(s, quantized(LAYERS["scan_remat"])))(q.scales)
    want = jax.grad(lambda s: through_scales(s, lambda w, x: LAYERS["scan_remat"](dequantize(w), x)))(q.scales)
    close(got, want, 1e-4)


def test_residuals_of_a_scanned_gradient_stay_operators():
    def fn(w, x):
        return jax.grad(lambda x: (LAYERS["scan"](w, x) ** 2).sum())(x)

    agrees(fn, quantize(STACK, "int8", batch_axes=1), X, tolerance=1e-4)


def test_loops_carry_operators():
    def fn(p, x):
        return lax.while_loop(lambda c: c[1] < 2, lambda c: (c[0], c[1] + 1, mlp(c[0], c[2])), (p, 0, x))[2]

    agrees(fn, Q, X)
    agrees(lambda p, x: lax.scan(lambda c, _: ((c[0], mlp(c[0], c[1])), None), (p, x), None, length=2)[0][1], Q, X)


@pytest.mark.parametrize("rule", [keeps_vjp, keeps_jvp])
def test_custom_rules(rule):
    """Kept whole with its gradient where no operator enters; a leaf that enters one is dequantized."""

    def outside(p, x):
        return rule(hidden(p, x), jnp.eye(32)) @ p["b"]

    agrees(outside, Q, X)
    close(
        jax.grad(lambda x: quantized(outside)(Q, x).sum())(X), jax.grad(lambda x: outside(plain(Q), x).sum())(X), 1e-4
    )

    def inside(p, x):
        return rule(x, p["a"])

    primitive = "custom_vjp_call" if rule is keeps_vjp else "custom_jvp_call"
    agrees(inside, Q, X, fallbacks=[("a", primitive)])
    close(jax.grad(lambda x: quantized(inside)(Q, x).sum())(X), jax.grad(lambda x: inside(plain(Q), x).sum())(X), 1e-4)


def test_strict_names_leaf_and_primitive():
    with pytest.raises(Dequantized, match=r"leaf 'a' is dequantized by mul"):
        quantized(lambda p, x: x @ (p["a"] * 2.0), strict=True)(Q, X)
    block = jax.jit(lambda w, x: x @ jnp.sin(w))
    with pytest.raises(Dequantized, match=r"leaf 'b' is dequantized by sin"):
        quantized(lambda p, x: block(p["b"], hidden(p, x)), strict=True)(Q, X)
    agrees(lambda p, x: x @ (p["a"] * 2.0), Q, X, fallbacks=[("a", "mul")])


def test_an_activation_quantizer_is_never_lost():
    p = {"a": Pre(Quantize("int8"), Q["a"])}
    close(quantized(lambda p, x: x @ p["a"])(p, X), X @ dequantize(Q["a"]), 2e-2)
    with pytest.raises(NotAffine, match="leaf 'a'"):
        quantized(lambda p, x: x @ jnp.sin(p["a"]))(p, X)


def test_one_compiled_block_serves_every_layer():
    traces = []

    @jax.jit
    def block(p, x):
        traces.append(None)
        return jnp.tanh(x @ p["w"])

    layers = {str(i): {"w": quantize(STACK[i], "int8")} for i in range(3)}

    def fn(p, x):
        for i in range(3):
            x = block(p[str(i)], x)
        return x

    from qjax.trace import compiled

    compiled._block.cache_clear()
    log = []
    run = quantized(fn, log=log)
    close(run(layers, X), LAYERS["python_loop"](jnp.stack([dequantize(p["w"]) for p in layers.values()]), X))
    run(layers, X)
    assert compiled._block.cache_info().currsize == 1
    assert len(traces) == 1


def test_fallbacks_inside_a_shared_block_name_each_leaf():
    block = jax.jit(lambda w, x: x @ jnp.sin(w))
    log = []
    run = quantized(lambda p, x: block(p["b"], block(p["a"], x)), log=log)
    p = {"a": quantize(PARAMS["a"][:, :16], "int8"), "b": quantize(PARAMS["b"][:16], "int8")}
    run(p, X)
    run(p, X)
    assert [(path, primitive) for path, primitive, _ in log] == [("a", "sin"), ("b", "sin")] * 2


def test_vmap_outside_over_data_and_over_operators():
    close(jax.vmap(lambda x: quantized(mlp)(Q, x))(X), mlp(plain(Q), X))
    two = jax.tree.map(lambda *leaves: jnp.stack(leaves), Q["a"], quantize(PARAMS["a"] * 3, "int4_g16"))
    got = jax.vmap(quantized(lambda w, x: x @ w), (0, None))(two, X[0])
    close(got, jnp.stack([X[0] @ dequantize(Q["a"]), X[0] @ dequantize(quantize(PARAMS["a"] * 3, "int4_g16"))]))


def test_static_arguments_outputs_and_closed_over_tracers():
    def fn(p, x, scale, name="y"):
        return {"out": mlp(p, x) * scale, name: 3, "kind": "text"}

    out = quantized(fn)(Q, X, 2.0, name="z")
    assert (out["z"], out["kind"]) == (3, "text")
    close(jax.jit(lambda q, x: quantized(lambda p: mlp(p, x) + x)(q))(Q, X), mlp(plain(Q), X) + X)
    assert quantized(mlp)(PARAMS, X).shape == X.shape  # no operator: fn itself
