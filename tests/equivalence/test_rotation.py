"""Rotations keep the network: on every head layout, tied and untied, with biases, unrolled and scanned."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax.diagnose import crest_factor
from qjax.equivalence import absorb_gains, rotate_stream, rotate_values
from qjax.models import Architecture, Decoder, stack_layers
from qjax.operators import Diag, Hadamard, Orthogonal
from qjax.trace.paths import leaves_with_paths, replace_leaves
from qjax.transforms import cache_quantize, rotate
from tests import draw

SIZES = {"vocab": 40, "width": 24, "layers": 2, "head_dim": 8, "ffn": 40}
MODELS = {
    "tied": Decoder(Architecture(**SIZES, heads=4, kv_heads=2)),
    "untied, biases": Decoder(
        Architecture(**SIZES, heads=3, kv_heads=3, tied=False, qkv_bias=True, o_bias=True, ffn_bias=True)
    ),
    "scan": Decoder(Architecture(**SIZES, heads=4, kv_heads=1), scan=True),
}


def subject(name):
    model = MODELS[name]
    rng = np.random.default_rng(0)
    p = draw.parameters(model.arch)
    p = stack_layers(p) if model.scan else p
    # Gains and biases away from 1 and 0: a forgotten one shows.
    odd = {
        path: jnp.asarray(rng.uniform(0.3, 2.0, leaf.shape), jnp.float32)
        for path, leaf in leaves_with_paths(p).items()
        if path.endswith(("/scale", "_bias"))
    }
    return model, replace_leaves(p, odd), jnp.asarray(rng.integers(0, 40, (2, 9)), jnp.int32)


def apart(model, p, q, tokens) -> float:
    a, b = jax.jit(model)(p, tokens), jax.jit(qjax.tapped(model))(q, tokens)
    return float(jnp.max(jnp.linalg.norm(a - b, axis=-1) / jnp.linalg.norm(a, axis=-1)))


@pytest.mark.parametrize("name", MODELS)
def test_every_rotation_keeps_the_network(name):
    model, p, tokens = subject(name)
    leaves = leaves_with_paths(p)
    gained = {**leaves, **absorb_gains(leaves, model.topology)}
    assert all(bool(jnp.all(gained[norm.gain] == 1)) for norm in model.topology.norms)
    turned = {**leaves, **rotate_stream(leaves, model.topology, Orthogonal.random(jax.random.key(1), 24))}
    turned |= rotate_values(turned, model.topology, Hadamard.random(jax.random.key(2), 8))
    assert apart(model, p, replace_leaves(p, turned), tokens) <= 5e-5
    inner = [path for path in leaves if path.endswith(("attn/q", "attn/v", "attn/o", "ffn/down"))]
    assert all(float(jnp.abs(turned[path] - leaves[path]).max()) > 0.1 for path in inner)


@pytest.mark.parametrize("name", MODELS)
def test_the_transform_keeps_the_network_and_quantizes_behind_it(name):
    model, p, tokens = subject(name)
    program, report = qjax.run(rotate(), model, p, [tokens])
    assert apart(model, p, program, tokens) <= 5e-5
    assert {row["path"] for row in report.rows} == set(report.targets) == set(report.rewritten)
    weights = qjax.gptq("int8") if name == "tied" else qjax.rtn("int8")
    recipe = qjax.chain(rotate(), weights, qjax.act_quantize("int8"), cache_quantize("int8", "int8"))
    if name == "untied, biases":
        recipe = qjax.recipes.quarot("int8", "int8", "int8_affine", method="rtn", clip=1.0)
    q, _ = qjax.run(recipe, model, p, [tokens], by="layers" if model.scan else "layers/*")
    assert 1e-4 < apart(model, p, q, tokens) < 0.1


def test_outliers_of_the_stream_are_spread():
    """A channel of the embedding that is 100 times the others: the Hadamard leaves no channel so far out."""
    model, p, tokens = subject("tied")
    p = {**p, "embed": p["embed"].at[:, 5].multiply(100.0)}
    turned, _ = qjax.run(rotate(scores=False), model, p, [tokens])

    def peak(leaves):
        """The largest of a token's channels, in units of their root mean square, in the mean over tokens."""
        _, seen = jax.jit(qjax.captured(model, "layers/0/residual/attn"))(leaves, tokens)
        return float(jnp.mean(crest_factor(seen["layers/0/residual/attn"], axis=-1)))

    assert peak(p) > 3.5  # sqrt(24) were a channel that holds all
    assert peak(turned) < 0.6 * peak(p)


def test_blocks_stay_blocks():
    model, p, tokens = subject("tied")
    q, _ = qjax.run(rotate(values=False, scores=False, block=4), model, p, [tokens])
    assert apart(model, p, q, tokens) <= 5e-5
    down = q["layers"]["0"]["ffn"]["down"]
    assert down.T.size == 4 and down.T.bits() == 0


def test_the_same_key_gives_the_same_signs():
    model, p, tokens = subject("tied")
    a, b, c, d = (
        qjax.run(rotate(scores=False, draw=n), model, p, [tokens], key=jax.random.key(seed))[0]["layers"]["1"]["attn"][
            "q"
        ]
        for seed, n in ((0, 0), (0, 0), (1, 0), (0, 1))
    )
    np.testing.assert_array_equal(a, b)
    assert min(float(jnp.abs(x - y).max()) for x, y in ((a, c), (a, d), (c, d))) > 0.1


BAD = {
    "nothing is left to turn": lambda m, p, t: rotate(
        stream=False, values=False, scores=False, down=False, heads=False
    ),
    "which leaves share a stream is not known": lambda m, p, t: qjax.run(rotate(), m.__call__, p, [t]),
    "already approximated; put rewrites": lambda m, p, t: qjax.run(qjax.chain(qjax.rtn("int8"), rotate()), m, p, [t]),
    "only a rotation keeps lengths, Diag": lambda m, p, t: rotate_stream(
        leaves_with_paths(p), m.topology, Diag(jnp.ones(24))
    ),
    "no Hadamard matrix of size 24|size 6": lambda m, p, t: qjax.run(rotate(block=6), m, p, [t]),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    with pytest.raises(ValueError, match=message):
        BAD[message](*subject("tied"))
