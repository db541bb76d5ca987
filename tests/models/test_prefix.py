from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax.kv import QuantizedCache
from qjax.models import Architecture, Decoder, generate, stack_layers

SIZES = dict(vocab=40, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=24)
PREFIX = [3, 7, 1]


def with_prefix(model, params):
    """The parameters with the keys and values of PREFIX in every layer, read off the float model's sites."""
    _, found = qjax.captured(model, "*/attn/key", "*/attn/value")(params, jnp.array([PREFIX]))
    more = {site.replace("/attn/", "/attn/prefix_"): value[0] for site, value in found.items()}
    return qjax.trace.paths.add_leaves(params, more)


def prompt():
    return jnp.asarray(np.random.default_rng(0).integers(0, 40, (2, 6)), jnp.int32)


def behind(tokens):
    return jnp.concatenate([jnp.broadcast_to(jnp.array(PREFIX), (len(tokens), 3)), tokens], axis=1)


@pytest.mark.parametrize(
    "variant",
    [{}, {"windows": (4, 0), "score_cap": 5.0}, {"learned_positions": True, "context": 30}],
    ids=["llama", "windows and cap", "table of positions"],
)
def test_logits_are_those_behind_the_tokens(variant):
    """At once, in a scan, and through a cache that holds only what comes behind."""
    arch = Architecture(**SIZES, **variant)
    model, tokens = Decoder(arch), prompt()
    params = model.init(jax.random.key(0))
    want, p = model(params, behind(tokens))[:, 3:], with_prefix(model, params)
    np.testing.assert_allclose(model(p, tokens), want, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(Decoder(arch, scan=True)(stack_layers(p), tokens), want, rtol=1e-4, atol=1e-5)
    state, at = model.init_cache(2, 6), jnp.broadcast_to(jnp.arange(6, dtype=jnp.int32), (2, 6))
    first, state = model.decode(p, state, tokens[:, :4], at[:, :4])
    second, _ = model.decode(p, state, tokens[:, 4:], at[:, 4:])
    np.testing.assert_allclose(jnp.concatenate([first, second], axis=1), want, rtol=1e-4, atol=1e-5)


def test_generation_goes_on_behind_the_prefix_and_padding_stays_unseen():
    model, tokens = Decoder(Architecture(**SIZES)), prompt()
    params = model.init(jax.random.key(0))
    p = with_prefix(model, params)
    np.testing.assert_array_equal(generate(model, p, tokens, 4), generate(model, params, behind(tokens), 4))
    padded = tokens.at[1, :2].set(0)
    words = generate(model, p, padded, 4, lengths=jnp.array([6, 4]))
    np.testing.assert_array_equal(words[1:], generate(model, p, padded[1:, 2:], 4))


def test_a_quantized_cache_leaves_the_prefix_exact():
    """One token behind it attends to the prefix and to itself, which alone is rounded."""
    arch = Architecture(**SIZES)
    model, tokens = Decoder(arch), prompt()[:, :1]
    p = with_prefix(model, model.init(jax.random.key(0)))
    for layer in p["layers"].values():  # then its own value does not count, and the prefix is all there is to round
        layer["attn"]["v"] = jnp.zeros_like(layer["attn"]["v"])
        layer["attn"]["k"] = jnp.zeros_like(layer["attn"]["k"])
    coarse = Decoder(arch, key_cache=QuantizedCache("int2"), value_cache=QuantizedCache("int2"))
    logits, state = coarse.decode(p, coarse.init_cache(2, 1), tokens, jnp.zeros((2, 1), jnp.int32))
    np.testing.assert_allclose(logits, model(p, tokens), rtol=1e-4, atol=1e-5)
    assert state[0][0].slots.shape == (2, 1)


def test_a_prefix_is_no_target_and_has_a_gradient():
    model, tokens = Decoder(Architecture(**SIZES)), prompt()
    p = with_prefix(model, model.init(jax.random.key(0)))
    assert not any("prefix" in path for path in qjax.uses(model, p, tokens).targets())
    slope = jax.grad(lambda v: model(qjax.trace.paths.add_leaves(p, {"layers/0/attn/prefix_value": v}), tokens).sum())
    assert float(jnp.abs(slope(p["layers"]["0"]["attn"]["prefix_value"])).max()) > 0
