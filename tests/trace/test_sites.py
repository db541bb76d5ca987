"""Sites by name and taps on them, however the function is written."""

from __future__ import annotations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

from qjax.operators import Hadamard, Quantize
from qjax.quantization import quantize
from qjax.trace.sites import Clip, Program, captured, sites, tapped
from tests import draw

W, X = draw.normal(0, 3, 8, 8, scale=1 / 3), draw.normal(1, 2, 5, 8)


ROTATION = Hadamard(2 * draw.integers(2, 0, 2, 8, dtype=np.int8) - 1, 8)


def block(w, x, tap=lambda x: x):
    k = tap(checkpoint_name(x @ w, "key"))
    scores = jnp.einsum("btd,bsd->bts", x, k)
    return x + jnp.einsum("bts,bsd->btd", jax.nn.softmax(scores, -1), k)


def looped(layer=block):
    def fn(w, x):
        for i in range(3):
            with jax.named_scope(f"layers/{i}"):
                x = layer(w[i], x)
        return x

    return fn


def scanned(layer=block):
    def fn(w, x):
        with jax.named_scope("layers"):
            return jax.lax.scan(lambda x, w: (layer(w, x), None), x, w)[0]

    return fn


def twice(x):
    return x * 2


FORMS = {
    "loop": (looped, "layers/*/key"),
    "scan": (scanned, "layers/key"),
    "jitted block": (lambda layer=block: looped(jax.jit(layer)), "layers/*/key"),
    "remat block": (lambda layer=block: looped(jax.checkpoint(layer)), "layers/*/key"),  # pyright: ignore[reportPrivateImportUsage]
    "scan of remat": (lambda layer=block: scanned(jax.checkpoint(layer)), "layers/key"),  # pyright: ignore[reportPrivateImportUsage]
}


@pytest.mark.parametrize("form", FORMS)
def test_a_tap_is_the_function_written_with_it(form):
    make, pattern = FORMS[form]
    taps = (ROTATION, Clip(-0.5, 0.5), Quantize.dynamic("int8"))

    @jax.jit
    def both(w, x):
        want = [make(lambda w, x, tap=tap: block(w, x, tap.apply))(w, x) for tap in taps]
        return [tapped(make())(Program(w, {pattern: tap}), x) for tap in taps], want

    for got, want in zip(*both(W, X), strict=True):
        np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


def test_listing():
    found = sites(looped(), W, X)
    assert list(found)[:3] == ["layers/0/key", "layers/0/btd,bsd->bts/dot0/left", "layers/0/bts,bsd->btd/dot0/left"]
    assert found["layers/0/key"].shape == (2, 5, 8) and found["layers/1/bts,bsd->btd/dot0/left"].kind == "dot"
    assert list(sites(scanned(jax.jit(block)), W, X)) == [n.replace("layers/0", "layers") for n in list(found)[:3]]
    shared = sites(lambda w, x: block(w[1], block(w[0], x)), W, X)
    assert shared["key"].count == 2


def test_unmarked_products_of_a_foreign_model():
    net = nn.MultiHeadDotProductAttention(2, name="attention")
    params = draw.like(jax.eval_shape(net.init, jax.random.key(0), X))
    found = sites(net.apply, params, X)
    dots = [n for n, s in found.items() if s.kind == "dot"]
    assert len(dots) == 4 and {n.rsplit("/", 1)[1] for n in dots} == {"left", "right"}
    out = jax.jit(tapped(net.apply))(Program(params, {dots[0]: Clip(0.0, 0.0)}), X)
    # Zero queries: uniform attention, one output for all positions.
    np.testing.assert_allclose(out, jnp.broadcast_to(out[:, :1], out.shape), rtol=1e-5, atol=1e-5)


def test_operators_and_gradients_together():
    q = quantize(W, "int8", batch_axes=1)
    program = Program(q, {"layers/key": Clip(-0.5, 0.5)})
    run = tapped(scanned(), strict=True)
    want = tapped(scanned(lambda w, x: block(w, x, Clip(-0.5, 0.5).apply)))(q, X)
    np.testing.assert_allclose(jax.jit(run)(program, X), want, rtol=2e-4, atol=2e-4)
    got = jax.grad(lambda x: run(Program(W, program.taps), x).sum())(X)
    direct = scanned(lambda w, x: block(w, x, Clip(-0.5, 0.5).apply))
    np.testing.assert_allclose(got, jax.grad(lambda x: direct(W, x).sum())(X), rtol=1e-4, atol=1e-4)


def test_a_program_is_a_pytree():
    program = Program(W, {"a": Clip(jnp.zeros(()), jnp.ones(()))})
    assert len(jax.tree.leaves(program)) == 3
    assert jax.tree.map(lambda a: a, program).taps["a"].high == 1


def test_bad_taps():
    with pytest.raises(ValueError, match="tap 'kye' names no site of this function; its sites are: layers/0/key"):
        tapped(looped())(Program(W, {"kye": Clip(0, 1)}), X)
    with pytest.raises(ValueError, match="two taps name the site 'layers/0/key'"):
        tapped(looped())(Program(W, {"layers/0/key": Clip(0, 1), "layers/*/key": Clip(0, 1)}), X)
    with pytest.raises(ValueError, match=r"turns \(2, 5, 8\) into \(2, 5, 4\)"):
        tapped(looped())(Program(W, {"layers/0/key": lambda x: x[..., :4]}), X)
    kept = jax.custom_vjp(block, nondiff_argnums=(2,))
    kept.defvjp(lambda w, x, t: (block(w, x), (w, x)), lambda t, r, g: r)
    with pytest.raises(ValueError, match="it lies inside a custom_vjp_call"):
        tapped(lambda w, x: kept(w[0], x, twice))(Program(W, {"key": Clip(0, 1)}), X)


def test_captured_values_are_those_of_the_run():
    def fn(w, x):
        x = checkpoint_name(jnp.tanh(x @ w), "first")
        return checkpoint_name(x @ w, "second").sum()

    w, x = draw.normal(0, 3, 3), draw.normal(1, 2, 3)
    y, seen = jax.jit(captured(fn, "*"))(w, x)
    np.testing.assert_allclose(seen["first"], jnp.tanh(x @ w), rtol=1e-6)
    np.testing.assert_allclose(seen["second"].sum(), y, rtol=1e-6)
    _, seen = captured(fn, "second")(Program(w, {"first": lambda x: 0 * x}), x)
    assert list(seen) == ["second"] and not seen["second"].any()
    with pytest.raises(ValueError, match="captured 'third' names no site of this function; its sites are: first, sec"):
        captured(fn, "third")(w, x)
    with pytest.raises(ValueError, match="the site 'turn' lies in a loop or branch"):
        captured(lambda w, x: jax.lax.fori_loop(0, 2, lambda i, x: checkpoint_name(x @ w, "turn"), x), "*")(w, x)
    with pytest.raises(ValueError, match="the site 'twice' occurs several times"):
        captured(lambda w, x: checkpoint_name(checkpoint_name(x @ w, "twice"), "twice"), "*")(w, x)
