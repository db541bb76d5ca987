"""Statistics are those of the rows that met a leaf, however the function is written."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax.ad_checkpoint import checkpoint_name

from qjax.operators.stacked import Stacked
from qjax.quantization import dequantize, quantize
from qjax.trace.observe import observe, observing
from tests import draw
from tests.trace.cases import LAYERS, ONE_PASS, PARAMS, STACK, X, hidden, mlp

COLLECT = ("gram", "absmax", "min", "mean", "count")
WEIGHTS = jnp.array([[1, 1, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 1, 0, 1]], jnp.float32)


def check(stats, rows, weights=None):
    """Statistics of one leaf against all the rows that met it."""
    x = np.concatenate([np.asarray(r, np.float64).reshape(-1, r.shape[-1]) for r in rows])
    if weights is not None:
        x = x[np.tile(np.asarray(weights).reshape(-1), len(rows)) > 0]
    assert float(stats["count"]) == len(x)
    np.testing.assert_allclose(stats["gram"], x.T @ x, rtol=0, atol=1e-5 * np.abs(x.T @ x).max())
    np.testing.assert_allclose(stats["absmax"], np.abs(x).max(0), rtol=1e-5)
    np.testing.assert_allclose(stats["min"], x.min(0), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats["mean"].total, x.sum(0), rtol=0, atol=1e-5 * np.abs(x).sum(0).max())


def layer(stats, i):
    return jax.tree.map(lambda v: v[i], stats)


def run(fn, params, x, where=None, weights=None):
    """Statistics of fn, whose output stays what fn alone computes; with weights: of all tokens, and weighted."""
    watch = observing(fn, COLLECT, where)

    def once(params, x, weights):
        observed = [watch(params, x), *([] if weights is None else [watch(params, x, weights)])]
        return fn(params, x), [out for out, _ in observed], [stats for _, stats in observed]

    want, outs, stats = jax.jit(once)(params, x, weights)
    for out in outs:
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), out, want)
    return stats[0] if weights is None else stats


@functools.cache
def layer_inputs():
    inputs = [X]
    for w in STACK:
        inputs.append(jnp.tanh(inputs[-1] @ w))
    return inputs


@pytest.mark.parametrize("name", ONE_PASS)
def test_equal_statistics_however_fn_is_written(name):
    for stats, weights in zip(run(ONE_PASS[name], PARAMS, X, weights=WEIGHTS), (None, WEIGHTS), strict=True):
        check(stats["a"], [X], weights)
        check(stats["b"], [hidden(PARAMS, X)], weights)


@pytest.mark.parametrize("name", LAYERS)
def test_layers_of_a_stack_have_their_own(name):
    for stats, weights in zip(run(LAYERS[name], STACK, X, weights=WEIGHTS), (None, WEIGHTS), strict=True):
        for i, x in enumerate(layer_inputs()[:3]):
            check(layer(stats[""], i), [x], weights)


def test_a_traced_index_pools_the_layers_and_says_so():
    def fn(w, x):
        return lax.fori_loop(0, 3, lambda i, c: jnp.tanh(c @ w["w"][i]), x)

    check(layer(run(fn, {"w": STACK}, X)["w"], 0), layer_inputs()[:3])
    stats = observe(fn, {"w": STACK}, [X])
    assert stats.pooled == ("w",)
    assert stats["w"]["gram"].shape == (1, 16, 16)


def test_a_weight_used_twice_and_in_loops():
    y = mlp(PARAMS, X)
    stats = run(lambda p, x: mlp(p, mlp(p, x)), PARAMS, X)
    check(stats["a"], [X, y])
    check(stats["b"], [hidden(PARAMS, X), hidden(PARAMS, y)])
    for fn in (
        lambda p, x: lax.scan(lambda c, _: (mlp(p, c), None), x, None, length=2)[0],
        lambda p, x: lax.while_loop(lambda c: c[0] < 2, lambda c: (c[0] + 1, mlp(p, c[1])), (0, x))[1],
    ):
        stats = run(fn, PARAMS, X)
        check(stats["a"], [X, y])
        check(stats["b"], [hidden(PARAMS, X), hidden(PARAMS, y)])


def test_a_branch_not_taken_counts_nothing():
    def fn(p, x):
        return lax.cond(x.sum() > 1e9, lambda x: mlp(p, x), lambda x: jax.nn.relu(x @ p["a"])[..., :16], x)

    stats = observe(fn, PARAMS, [X], collect=COLLECT)
    check(stats["a"], [X])
    assert float(stats["b"]["count"]) == 0
    assert stats.unreached == ("b",)


@pytest.mark.parametrize("gate", [lax.stop_gradient, lambda x: jnp.eye(16)[jnp.argmax(x, -1)]])
def test_sites_no_gradient_reaches(gate):
    check(run(lambda p, x: mlp(p, gate(x)), PARAMS, X)["a"], [gate(X)])


def test_experts_have_their_own_counts():
    experts = draw.normal(4, 3, 16, 8)
    stats = run(lambda w, x: jnp.einsum("etd,edf->etf", x, w), experts, X)[""]
    for i in range(3):
        check(layer(stats, i), [X[i]])
    sizes = jnp.array([4, 0, 11])

    def ragged(w, x):
        return lax.ragged_dot(x.reshape(15, 16), w["experts"], sizes)

    stats = observe(ragged, {"experts": experts}, [X], collect=("gram", "absmax", "min", "mean"))
    np.testing.assert_array_equal(stats["experts"]["count"], sizes.astype(jnp.float32))
    assert stats.unreached == ("experts[1]",)
    check(layer(stats["experts"], 0), [X.reshape(15, 16)[:4]])
    check(layer(stats["experts"], 2), [X.reshape(15, 16)[4:]])
    weighted = jax.jit(observing(ragged, COLLECT))({"experts": experts}, X, WEIGHTS)[1]["experts"]
    check(layer(weighted, 0), [X.reshape(15, 16)[:4]], WEIGHTS.reshape(-1)[:4])


def test_columns_come_in_the_stored_order():
    w, h = draw.normal(4, 2, 8, 16), X.reshape(3, 5, 2, 8)
    check(run(lambda w, h: jnp.einsum("bthk,hkd->btd", h, w), w, h)[""], [X])
    swapped = run(lambda w, h: jnp.einsum("btkh,khd->btd", jnp.swapaxes(h, 2, 3), jnp.swapaxes(w, 0, 1)), w, h)
    check(swapped[""], [X])


def test_convolutions_are_measured_a_patch_at_a_time():
    image, kernel = draw.normal(4, 2, 5, 5, 4), draw.normal(5, 3, 3, 4, 6)
    padded = jnp.pad(image, ((0, 0), (1, 1), (1, 1), (0, 0)))
    patches = jnp.stack([padded[:, i : i + 5, j : j + 5] for i in range(3) for j in range(3)], 3)

    def conv(w, x):
        return lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    check(run(conv, kernel, image)[""], [patches.reshape(2, 5, 5, -1)])


@pytest.mark.parametrize("wrap", [lambda f: f, jax.checkpoint], ids=["plain", "remat"])
def test_both_sides_of_each_leaf_under_a_gradient(wrap):
    def fn(p, x):
        return jax.grad(lambda p, x: (wrap(mlp)(p, x) ** 2).sum(), (0, 1))(p, x)

    stats = run(fn, PARAMS, X, where="*")
    out = 2 * mlp(PARAMS, X)
    check(stats["a"], [X])  # once, although a checkpoint computes it twice
    check(stats["b"], [hidden(PARAMS, X)])
    check(stats["b@output"], [out])
    check(stats["a@output"], [jnp.where(hidden(PARAMS, X) > 0, out @ PARAMS["b"].T, 0.0)])


def test_gradients_and_batches_of_an_observed_function():
    watch = observing(mlp, COLLECT)

    def slopes(*fns):
        return jax.jit(lambda x: [jax.grad(lambda x, fn=fn: (fn(x) ** 2).sum())(x) for fn in fns])(X)

    got, want = slopes(lambda x: watch(PARAMS, x)[0], lambda x: mlp(PARAMS, x))
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    for name in ("custom_vjp", "custom_jvp"):
        fn = ONE_PASS[name]
        got, want = slopes(lambda x, fn=fn: observing(fn, COLLECT)(PARAMS, x)[0], lambda x, fn=fn: fn(PARAMS, x))
        np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    each = jax.jit(jax.vmap(lambda x: watch(PARAMS, x)[1]))(X)
    for i in range(3):
        check(layer(each["a"], i), [X[i]])


def test_operators_are_observed_before_their_maps():
    q = {"a": quantize(PARAMS["a"], "int8"), "b": quantize(PARAMS["b"], "int4_g16")}
    stats = run_quantized(mlp, q, X)
    check(stats["a"], [X])
    check(stats["b"], [jax.nn.relu(X @ dequantize(q["a"]))])
    mixed = Stacked(tuple(quantize(w, k) for w, k in zip(STACK, ("int8", "int4_g8", "int8"), strict=True)))
    dense = jnp.stack([dequantize(op) for op in mixed.ops])
    got = run_quantized(LAYERS["scan"], mixed, X)[""]
    want = run(LAYERS["scan"], dense, X)[""]
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), got, want)


def run_quantized(fn, params, x):
    return jax.jit(observing(fn, COLLECT))(params, x)[1]


def grams(fn, params, x, size):
    """Products of one Gram's shape in the compiled program."""
    text = jax.jit(observing(fn, ("gram",))).lower(params, x).compile().as_text()
    shape = f"f32[{size},{size}]"
    products = ("dot(", "__onednn$matmul", "__ynn")
    return sum(
        shape in line.split("=")[1][:40] and any(d in line for d in products)
        for line in text.splitlines()
        if "=" in line
    )


def test_projections_of_one_value_share_one_gram():
    p = {n: draw.normal(i, 24, 24, scale=1 / 5) for i, n in enumerate("qkvo")}

    @jax.jit
    def project(w, x):
        return x.astype(jnp.bfloat16).astype(jnp.float32) @ w  # a cast of its own in each call

    def attention(p, x):
        q, k, v = (project(p[n], x) for n in "qkv")
        return (jax.nn.softmax(q @ jnp.swapaxes(k, 1, 2)) @ v) @ p["o"]

    x = draw.normal(7, 2, 6, 24)
    assert grams(attention, p, x, 24) == 2
    stats = run(attention, p, x)
    np.testing.assert_array_equal(stats["q"]["gram"], stats["v"]["gram"])


def transformer_block(x, p):
    def norm(x):
        return x * lax.rsqrt((x * x).mean(-1, keepdims=True) + 1e-5)

    h = norm(x)
    q, k, v = ((h @ p[n]).reshape(2, -1, 2, 48) for n in "qkv")
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k), -1)
    x = x + jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape) @ p["o"]
    h = norm(x)
    return x + (jax.nn.silu(h @ p["g"]) * (h @ p["u"])) @ p["d"], None


@pytest.mark.parametrize("scanned", [True, False])
def test_temporary_memory_is_forward_plus_accumulators(scanned):
    shapes = {**dict.fromkeys("qkvo", (96, 96)), **dict.fromkeys("gu", (96, 256)), "d": (256, 96)}
    x = jnp.ones((2, 256, 96))
    if scanned:
        params = {n: jnp.ones((4, *s)) for n, s in shapes.items()}
    else:
        params = [{n: jnp.ones(s) for n, s in shapes.items()} for _ in range(4)]

    def fn(p, x):
        if scanned:
            return lax.scan(transformer_block, x, p)[0]
        for layer in p:
            x, _ = transformer_block(x, layer)
        return x

    def memory(f):
        analysis = jax.jit(f).lower(params, x).compile().memory_analysis()
        return analysis.temp_size_in_bytes, analysis.output_size_in_bytes

    (forward, output), (observed, outputs) = memory(fn), memory(observing(fn, ("gram", "absmax")))
    assert observed <= 1.1 * (forward + outputs - output)


def test_sites_are_measured_by_name():
    @jax.jit
    def block(w, x):
        return checkpoint_name(jnp.tanh(x @ w), "out")

    def fn(p, x):
        for i in range(2):
            with jax.named_scope(f"layers/{i}"):
                x = block(p["w"][i], x)
        return x

    names = ["layers/0/out", "layers/1/out"]
    _, stats = jax.jit(observing(fn, dict.fromkeys(names, COLLECT)))({"w": STACK}, X, WEIGHTS)
    for name, x in zip(names, layer_inputs()[1:], strict=False):
        check(stats[name], [x], WEIGHTS)

    def scanned(w, x):
        return lax.scan(lambda c, w: (checkpoint_name(jnp.tanh(c @ w), "out"), None), x, w)[0]

    _, stats = jax.jit(observing(scanned, {"out": COLLECT}))(STACK, X)
    for i, x in enumerate(layer_inputs()[1:]):
        check(layer(stats["out"], i), [x])


def test_batches_merge():
    stats = observe(mlp, PARAMS, [X, 2 * X], collect=COLLECT)
    check(stats["a"], [X, 2 * X])
    assert (stats.unreached, stats.pooled, list(stats)) == ((), (), ["a", "b"])
    weighted = observe(mlp, PARAMS, [X, X], collect=COLLECT, where="a", weights=[WEIGHTS, 1 - WEIGHTS])
    assert list(weighted) == ["a"]
    check(weighted["a"], [X])


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda: observe(mlp, PARAMS, iter([X])), TypeError, "sequence"),
        (lambda: observe(mlp, PARAMS, []), ValueError, "empty"),
        (lambda: observe(mlp, PARAMS, [X], collect=("grams",)), ValueError, "grams"),
        (lambda: observe(mlp, PARAMS, [X], collect={"c": ("gram",)}), ValueError, "'c'"),
        (lambda: observe(mlp, PARAMS, [X], where="c*"), ValueError, "matched no leaf"),
        (lambda: observe(mlp, PARAMS, [X], weights=[]), ValueError, "0 weights for 1 batches"),
        (lambda: observe(mlp, PARAMS, [X], weights=[jnp.ones((2, 2))]), ValueError, "match the leading axes"),
        (
            lambda: observe(lambda p, x: mlp(p, jnp.sort(x, axis=1)), PARAMS, [X], weights=[WEIGHTS]),
            ValueError,
            "cannot follow the tokens to leaf 'a'",
        ),
        (  # parts of the time axis in another order; in order they are followed (test_decoder)
            lambda: observe(
                lambda p, x: mlp(p, jnp.concatenate([x[:, 2:], x[:, :2]], axis=1)), PARAMS, [X], weights=[WEIGHTS]
            ),
            ValueError,
            "cannot follow the tokens to leaf 'a'",
        ),
    ],
)
def test_bad_input(call, error, match):
    with pytest.raises(error, match=match):
        call()
