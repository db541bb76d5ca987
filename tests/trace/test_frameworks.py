"""The same interpreter on models of flax linen, flax nnx, equinox and haiku: uses, products as stored, statistics."""

from __future__ import annotations

import equinox as eqx
import flax.linen as nn
import haiku as hk
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qjax.operators.view import View
from qjax.quantization import dequantize, quantize
from qjax.trace.observe import observing
from qjax.trace.paths import is_leaf, leaves_with_paths, replace_leaves
from qjax.trace.quantized import quantized
from qjax.trace.uses import uses
from tests import draw

KEY = jax.random.key(0)
TOKENS = jnp.arange(6).reshape(2, 3)
X = draw.normal(0, 2, 3, 16)


@pytest.fixture(autouse=True)
def _their_promotion():
    """Other libraries rely on implicit promotion."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def linen(dtype):
    class Model(nn.Module):
        @nn.compact
        def __call__(self, tokens):
            x = nn.Embed(11, 16, name="embed")(tokens)
            x = x + nn.MultiHeadDotProductAttention(2, dtype=dtype, name="attn")(nn.LayerNorm(name="norm")(x))
            x = nn.relu(nn.Dense(32, dtype=dtype, name="up")(x))
            return nn.Dense(11, name="head")(x.astype(jnp.float32))

    model = Model()
    return (
        model.apply,
        draw.like(jax.eval_shape(model.init, KEY, TOKENS)),
        TOKENS,
        ["query", "key", "value", "out", "up"],
    )


def linen_scan():
    class Block(nn.Module):
        @nn.compact
        def __call__(self, x, _):
            return jnp.tanh(nn.Dense(16, name="dense")(x)), None

    layers = nn.scan(nn.remat(Block), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    return lambda v, x: layers.apply(v, x, None)[0], draw.like(jax.eval_shape(layers.init, KEY, X, None)), X, ["dense"]


def nnx_model():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.embed = nnx.Embed(11, 16, rngs=rngs)
            self.attn = nnx.MultiHeadAttention(2, 16, decode=False, rngs=rngs)
            self.up, self.down = nnx.Linear(16, 32, rngs=rngs), nnx.Linear(32, 16, rngs=rngs)

        def __call__(self, tokens):
            x = self.embed(tokens)
            x = x + self.attn(x)
            return self.embed.attend(x + self.down(nnx.relu(self.up(x))))

    graph, state = nnx.split(nnx.eval_shape(lambda: Model(nnx.Rngs(0))))
    return lambda s, t: nnx.merge(graph, s)(t), draw.like(state), TOKENS, ["query", "key", "value", "out", "up", "down"]


def equinox_mlp():
    net = eqx.filter_eval_shape(eqx.nn.MLP, 16, 8, 32, 2, key=KEY)
    shapes, rest = eqx.partition(net, lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct))

    def fn(arrays, x):
        return jax.vmap(jax.vmap(eqx.combine(arrays, rest)))(x)

    return fn, draw.like(shapes), X, ["layers/0", "layers/1", "layers/2"]


def equinox_gru():
    cell = draw.like(eqx.filter_eval_shape(eqx.nn.GRUCell, 16, 8, key=KEY))

    def fn(cell, x):
        return jax.vmap(lambda row: jax.lax.scan(lambda h, u: (cell(u, h), None), jnp.zeros(8), row)[0])(x)

    return fn, cell, X, ["weight_ih", "weight_hh"]


def haiku():
    net = hk.without_apply_rng(hk.transform(lambda x: hk.Linear(8)(jax.nn.relu(hk.Linear(32)(x)))))
    return net.apply, draw.like(jax.eval_shape(net.init, KEY, X)), X, ["linear_1/w", "linear/w"]


MODELS = {
    "linen": lambda: linen(jnp.float32),
    "linen_bf16": lambda: linen(jnp.bfloat16),
    "linen_scan": linen_scan,
    "nnx": nnx_model,
    "equinox": equinox_mlp,
    "equinox_gru": equinox_gru,
    "haiku": haiku,
}


@pytest.mark.parametrize("name", MODELS)
def test_targets_products_and_statistics(name):
    fn, params, batch, expected = MODELS[name]()
    found = uses(fn, params, batch)
    targets = found.targets()
    assert len(targets) == len(expected)
    assert all(part in path for part, path in zip(expected, targets, strict=True)), targets

    leaves = leaves_with_paths(params)
    ops = {}
    for path in targets:
        use = found.matrix(path)
        matrix = use.to_matrix(leaves[path])
        ops[path] = use.from_matrix(quantize(matrix, "int8", batch_axes=len(use.batch_axes)))
    dense = {p: op.dense() if isinstance(op, View) else dequantize(op) for p, op in ops.items()}
    dense = {p: w.astype(leaves[p].dtype) for p, w in dense.items()}
    qparams, params = replace_leaves(params, ops), replace_leaves(params, dense)
    assert sum(map(is_leaf, jax.tree.leaves(qparams, is_leaf=is_leaf))) == len(targets)

    @jax.jit
    def everything(qparams, params, batch):
        got = quantized(fn, strict=True)(qparams, batch)
        observed = observing(fn, ("gram", "count"))
        return fn(params, batch), got, observed(params, batch), observed(qparams, batch)[1]

    want, got, (out, stats), again = everything(qparams, params, batch)
    tolerance = 3e-2 if "bf16" in name else 1e-5
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * float(jnp.abs(want).max()))
    np.testing.assert_allclose(out, want, rtol=1e-5, atol=tolerance)
    assert sorted(stats) == sorted(targets)
    for path in targets:
        *lead, features, _ = found.matrix(path).matrix_shape
        assert stats[path]["gram"].shape == (*lead, features, features)
        assert float(stats[path]["count"].max()) == 6
        scale = float(jnp.abs(stats[path]["gram"]).max())
        np.testing.assert_allclose(again[path]["gram"], stats[path]["gram"], rtol=0, atol=max(tolerance, 1e-4) * scale)
    if "query" in expected:  # query, key and value read one input
        q, k, v = (stats[path]["gram"] for path in found.groups()[0])  # these three and no other
        np.testing.assert_array_equal(q, k)
        np.testing.assert_array_equal(q, v)
