from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params

from qjax.kv import FloatCache
from qjax.kv.attention import causal_parts
from qjax.models import SITES, Architecture, Decoder, stack_layers, unstack_layers
from qjax.models import decoder as module
from qjax.models.architecture import llama3_rope_factors
from qjax.models.decoder import nest
from qjax.models.rope import rotations
from qjax.trace.observe import observe
from qjax.trace.sites import Program, tapped

TINY = Architecture(vocab=32, width=12, layers=3, heads=4, kv_heads=2, head_dim=4, ffn=20, theta=1000.0)
VARIANTS = {
    "tied": TINY,
    "untied": dataclasses.replace(TINY, tied=False),
    "biases": dataclasses.replace(TINY, qkv_bias=True, o_bias=True, ffn_bias=True),
    "one key head": dataclasses.replace(TINY, kv_heads=1),
    "as many key heads": dataclasses.replace(TINY, kv_heads=4, head_dim=6),
    "rope factors": dataclasses.replace(TINY, rope_factors=llama3_rope_factors(4, 1000.0, 8.0, 1.0, 4.0, 32)),
}
TOKENS = np.random.default_rng(0).integers(0, 32, (2, 6)).astype(np.int32)


def params_of(arch, seed=0):
    """Random parameters, biases and norm gains included; from numpy, which compiles nothing."""
    random = np.random.default_rng(seed)

    def draw(path, shape):
        if path.endswith("/scale"):
            return random.normal(1, 0.2, shape).astype(np.float32)
        return random.normal(0, max(shape) ** -0.5, shape).astype(np.float32)

    return nest({path: draw(path, shape) for path, shape in arch.shapes.items()})


def plain_forward(arch, params, tokens):
    """The equations in float64 numpy, one head and one query at a time."""
    p = jax.tree.map(lambda a: np.asarray(a, np.float64), params)

    def norm(x, scale):
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + arch.eps) * scale

    def linear(w, name, x):
        return x @ w[name] + w.get(f"{name}_bias", 0.0)

    def rope(x, position):
        pairs = np.arange(arch.head_dim // 2)
        f = arch.theta ** (-2.0 * pairs / arch.head_dim) / np.asarray(arch.rope_factors or [1.0] * len(pairs))
        z = (x[: len(pairs)] + 1j * x[len(pairs) :]) * np.exp(1j * f * position)
        return np.concatenate([z.real, z.imag])

    out = []
    for row in tokens:
        x = p["embed"][row]
        for i in range(arch.layers):
            w = p["layers"][str(i)]
            h = norm(x, w["attn_norm"]["scale"])
            q, k, v = (linear(w["attn"], n, h).reshape(len(row), -1, arch.head_dim) for n in "qkv")
            mixed = np.zeros_like(q)
            for t in range(len(row)):
                for head in range(arch.heads):
                    group = head // (arch.heads // arch.kv_heads)
                    s = np.array([rope(q[t, head], t) @ rope(k[u, group], u) for u in range(t + 1)])
                    e = np.exp(s / np.sqrt(arch.head_dim))
                    mixed[t, head] = (e / e.sum()) @ v[: t + 1, group]
            x = x + linear(w["attn"], "o", mixed.reshape(len(row), -1))
            h = norm(x, w["ffn_norm"]["scale"])
            gate = linear(w["ffn"], "gate", h)
            x = x + linear(w["ffn"], "down", gate / (1 + np.exp(-gate)) * linear(w["ffn"], "up", h))
        x = norm(x, p["norm"]["scale"])
        out.append(x @ (p["embed"].T if arch.tied else p["head"]))
    return np.stack(out)


@pytest.mark.parametrize("arch", VARIANTS.values(), ids=VARIANTS)
def test_logits_are_those_of_the_equations(arch):
    params = params_of(arch)
    np.testing.assert_allclose(Decoder(arch)(params, TOKENS), plain_forward(arch, params, TOKENS), rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("arch", VARIANTS.values(), ids=VARIANTS)
def test_scan_is_the_loop(arch):
    params = params_of(arch)
    looped, scanned = Decoder(arch)(params, TOKENS), Decoder(arch, scan=True)(stack_layers(params), TOKENS)
    np.testing.assert_allclose(scanned, looped, rtol=1e-5, atol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, unstack_layers(stack_layers(params)), params)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("cut", [6, 4, 1])
def test_cached_decoding_is_the_forward_pass(scan, cut):
    model, params = Decoder(TINY, scan=scan), params_of(TINY)
    expected = Decoder(TINY)(params, TOKENS)
    params = stack_layers(params) if scan else params
    state, logits = model.init_cache(2, 7), []
    positions = jnp.broadcast_to(jnp.arange(6), (2, 6))
    for start in range(0, 6, cut):
        piece = slice(start, start + cut)
        new, state = model.decode(params, state, TOKENS[:, piece], positions[:, piece])
        logits.append(new)
    np.testing.assert_allclose(jnp.concatenate(logits, axis=1), expected, rtol=1e-4, atol=1e-5)


def test_last_gives_the_last_logits():
    model, params, positions = Decoder(TINY), params_of(TINY), jnp.broadcast_to(jnp.arange(6), (2, 6))
    whole, _ = model.decode(params, model.init_cache(2, 6), TOKENS, positions)
    last, _ = model.decode(params, model.init_cache(2, 6), TOKENS, positions, last=True)
    np.testing.assert_allclose(last, whole[:, -1:], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("cached", [False, True])
def test_left_padding_changes_nothing(cached):
    model, params = Decoder(TINY), params_of(TINY)
    padded = jnp.concatenate([jnp.full((2, 3), 5, jnp.int32), TOKENS], axis=1)
    positions = jnp.broadcast_to(jnp.arange(9) - 3, (2, 9))
    if cached:
        logits, _ = model.decode(params, model.init_cache(2, 6), padded, positions)
    else:
        logits = model(params, padded, positions)
    assert jnp.isfinite(logits).all()
    np.testing.assert_allclose(logits[:, 3:], model(params, TOKENS), rtol=1e-5, atol=1e-5)


def test_caches_are_the_models_own_choice():
    """A coarser cache changes cached logits and nothing else."""
    coarse = Decoder(TINY, key_cache=FloatCache("float8_e4m3fn"))
    params, positions = params_of(TINY), jnp.broadcast_to(jnp.arange(6), (2, 6))
    logits, _ = coarse.decode(params, coarse.init_cache(2, 6), TOKENS, positions)
    exact = Decoder(TINY)(params, TOKENS)
    np.testing.assert_array_equal(coarse(params, TOKENS), exact)
    assert 1e-4 < jnp.abs(logits - exact).max() < 3.0


def test_every_layer_shares_one_compiled_block():
    arch = dataclasses.replace(TINY, layers=5, ffn=24)
    model, before = Decoder(arch), module.block._cache_size()
    params = params_of(arch)
    model(params, TOKENS)
    assert module.block._cache_size() == before + 1
    model(params, TOKENS + 0)
    assert module.block._cache_size() == before + 1


def test_a_layer_may_differ_from_the_others():
    params = params_of(TINY)
    params["layers"]["1"]["ffn"] = {
        name: w[:, :8] if name != "down" else w[:8] for name, w in params["layers"]["1"]["ffn"].items()
    }
    assert Decoder(TINY)(params, TOKENS).shape == (2, 6, 32)


LONG = dataclasses.replace(TINY, layers=1, ffn=24)  # with 24 outputs a matrix is no head of a vocabulary of 32
LONG_TOKENS = np.random.default_rng(1).integers(0, 32, (2, 150)).astype(np.int32)


def test_attention_in_parts_is_attention_over_the_square():
    """Positions that are given may come in any order, so that every score is computed; so it is for a tap."""
    params, positions = params_of(LONG), jnp.arange(150, dtype=jnp.int32)[None]
    halve = {"layers/0/attn/probabilities": lambda p: 0.5 * p, "layers/0/attn/scores": lambda s: 2.0 * s}

    def run(params, tokens, positions):
        return Decoder(LONG)(params, tokens, positions), tapped(Decoder(LONG))(
            Program(params, halve), tokens, positions
        )

    parts, whole = jax.jit(run)(params, LONG_TOKENS, None), jax.jit(run)(params, LONG_TOKENS, positions)
    for a, b in zip(parts, whole, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)
    assert jnp.abs(parts[0] - parts[1]).max() > 0.1


def test_attention_in_parts_computes_five_eighths_of_the_square():
    assert causal_parts(127) == [(0, 127, 127)]
    parts = causal_parts(150)
    assert [p[0] for p in parts[1:]] + [150] == [p[1] for p in parts] == [p[2] for p in parts]
    x, params = jnp.zeros((1, 512, TINY.width)), params_of(TINY)["layers"]["0"]

    def flops(positions):
        turns = rotations(TINY, jnp.arange(512, dtype=jnp.int32)[None])
        jaxpr = jax.make_jaxpr(module.block, static_argnums=0)(TINY, params, x, turns, positions)
        dots = [e for e in eqns_in(jaxpr.jaxpr) if e.primitive.name == "dot_general" and e.invars[0].aval.ndim == 4]
        return sum(2 * e.outvars[0].aval.size * e.invars[0].aval.shape[-1] for e in dots)

    square = 2 * 2 * TINY.heads * 512 * 512 * TINY.head_dim
    assert flops(jnp.arange(512, dtype=jnp.int32)[None]) == square
    assert flops(None) == square * 5 // 8


def test_padding_weights_follow_the_tokens_through_every_layer():
    params, weights = params_of(LONG), jnp.ones((2, 150)).at[:, 100:].set(0)
    names = [f"attn/{n}" for n in "qkvo"] + [f"ffn/{n}" for n in ("gate", "up", "down")]
    padded = observe(Decoder(LONG), params, [LONG_TOKENS], ("gram",), weights=[weights])
    plain = observe(Decoder(LONG), params, [LONG_TOKENS[:, :100]], ("gram",))
    assert set(padded) == set(plain) == {f"layers/0/{name}" for name in names}
    for path, found in padded.items():
        assert float(found["count"]) == 200
        np.testing.assert_allclose(found["gram"], plain[path]["gram"], rtol=1e-4, atol=1e-4)


def eqns_in(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in jaxprs_in_params(eqn.params):
            yield from eqns_in(inner)


def names_in(jaxpr, scope=()):
    """Every marked site: the scopes of the calls it sits in, then its own name."""
    for eqn in jaxpr.eqns:
        here = (*scope, *filter(None, [str(eqn.source_info.name_stack)]))
        if eqn.primitive.name == "name":
            yield "/".join([*here, eqn.params["name"]])
        for inner in jaxprs_in_params(eqn.params):
            yield from names_in(inner, here)


def test_sites_carry_the_layer_of_their_call():
    jaxpr = jax.make_jaxpr(Decoder(TINY))(params_of(TINY), TOKENS)
    expected = {f"layers/{i}/{site}" for i in range(3) for site in SITES} | {"residual/embed", "norm/output"}
    assert set(names_in(jaxpr.jaxpr)) == expected
    # One block for all layers, or the sites of the first would be all there are to find.
    blocks = [e.params["jaxpr"] for e in jaxpr.eqns if e.params.get("name") == "block"]
    assert len(blocks) == 3 and all(block is blocks[0] for block in blocks)


def test_init_has_the_shapes_of_the_architecture():
    for arch in VARIANTS.values():
        leaves = jax.tree_util.tree_leaves_with_path(jax.eval_shape(Decoder(arch).init, jax.random.key(0)))
        found = {jax.tree_util.keystr(path, simple=True, separator="/"): leaf.shape for path, leaf in leaves}
        assert found == arch.shapes
        assert arch.parameters == sum(leaf.size for _, leaf in leaves)


def test_an_unknown_token_is_seen_in_the_logits():
    logits = Decoder(TINY)(params_of(TINY), jnp.array([[1, 32]]))
    assert jnp.isnan(logits[0, 1]).all()


def test_stacking_unequal_layers_names_the_layer():
    params = params_of(TINY)
    params["layers"]["2"]["attn"]["q_bias"] = np.zeros(16, np.float32)
    with pytest.raises(ValueError, match="layers/2"):
        stack_layers(params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "kv_heads=2"),
        ({"head_dim": 3}, "head_dim=3"),
        ({"layers": 0}, r"Architecture\.layers"),
        ({"rope_factors": (1.0,)}, "rope_factors"),
        ({"rotary": 6}, "not 6 of head_dim=4"),
        ({"norm": "group"}, "Architecture.norm must be one of"),
        ({"activation": "selu"}, "'selu'"),
        ({"windows": (-1,)}, "windows"),
        ({"windows": (1, 2, 3, 4)}, "at most one number for each of 3 layers"),
        ({"window_theta": 10.0}, "none has one"),
    ],
)
def test_impossible_architectures_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(TINY, **change)


def test_tokens_of_one_dimension_are_refused():
    with pytest.raises(ValueError, match="batch, tokens"):
        Decoder(TINY)(params_of(TINY), jnp.zeros(4, jnp.int32))
