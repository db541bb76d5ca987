"""One network, our decoder and the same written in linen, nnx and equinox, unrolled and scanned: identical codes.

Also mixed formats per layer on our decoder and on a scanned foreign model, and one compilation for each distinct block.
"""

from __future__ import annotations

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import qjax
from qjax.kv.attention import grouped_mix, grouped_scores
from qjax.models import Architecture, Decoder, stack_layers
from qjax.models.norms import rms_norm
from qjax.models.rope import rotate
from qjax.operators import View
from qjax.trace.paths import is_leaf, leaves_with_paths
from qjax.transforms import programs
from tests import draw

ARCH = Architecture(vocab=48, width=32, layers=3, heads=4, kv_heads=2, head_dim=8, ffn=64)
NAMES = {"attn/q": 32, "attn/k": 16, "attn/v": 16, "attn/o": 32, "ffn/gate": 64, "ffn/up": 64, "ffn/down": 32}
MODEL = Decoder(ARCH)
PARAMS = draw.parameters(ARCH)
BATCHES = [draw.integers(i, 0, ARCH.vocab, 2, 12) for i in range(3)]
RECIPE = qjax.gptq("int3_g16_affine")


def turns(tokens):
    positions = jnp.arange(tokens.shape[1], dtype=jnp.int32)[None]
    frequencies = 1.0 / (jnp.float32(ARCH.theta) ** (jnp.arange(0, 8, 2, dtype=jnp.float32) / 8))
    angles = positions.astype(jnp.float32)[:, :, None] * frequencies[None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def layer(linear, gains, x, angles):
    """The block's mathematics around `linear(name, x)`; a framework adds how its kernels are stored and called."""
    batch, time, _ = x.shape
    h = rms_norm(x, gains[0], ARCH.eps)
    q, k, v = (linear(f"attn/{n}", h).reshape(batch, time, -1, 8) for n in "qkv")
    q, k = rotate(q, angles), rotate(k, angles)
    s = grouped_scores(q, k.transpose(0, 2, 1, 3)) * jnp.float32(8**-0.5)
    seen = jnp.tril(jnp.ones((time, time), bool))
    p = jax.nn.softmax(jnp.where(jnp.broadcast_to(seen, s.shape), s, jnp.full_like(s, -1e30)), axis=-1)
    x = x + linear("attn/o", grouped_mix(p, v.transpose(0, 2, 1, 3)).reshape(batch, time, -1))
    h = rms_norm(x, gains[1], ARCH.eps)
    return x + linear("ffn/down", jax.nn.silu(linear("ffn/gate", h)) * linear("ffn/up", h))


def head(embed, norm, x):
    return jnp.einsum("btd,vd->btv", rms_norm(x, norm, ARCH.eps), embed)


# ---- linen


class LinenBlock(nn.Module):
    @nn.compact
    def __call__(self, x, angles):
        gains = [self.param(f"norm{i}", nn.initializers.ones, (ARCH.width,)) for i in range(2)]
        return layer(lambda n, h: nn.Dense(NAMES[n], use_bias=False, name=n.replace("/", "_"))(h), gains, x, angles)


class LinenScanned(nn.Module):
    @nn.compact
    def __call__(self, x, angles):
        return LinenBlock(name="block")(x, angles), None


class Linen(nn.Module):
    scan: bool = False

    @nn.compact
    def __call__(self, tokens):
        embed = self.param("embed", nn.initializers.ones, (ARCH.vocab, ARCH.width))
        x, angles = jnp.take(embed, tokens, axis=0), turns(tokens)
        if self.scan:
            split = {"params": True}
            loop = nn.scan(LinenScanned, {"params": 0}, split_rngs=split, in_axes=nn.broadcast, length=ARCH.layers)
            x, _ = loop(name="layers")(x, angles)
        else:
            for i in range(ARCH.layers):
                x = LinenBlock(name=f"layers_{i}")(x, angles)
        return head(embed, self.param("norm", nn.initializers.ones, (ARCH.width,)), x)


def linen_block(p):
    kernels = {name.replace("/", "_"): {"kernel": p[name.split("/")[0]][name.split("/")[1]]} for name in NAMES}
    return {**kernels, "norm0": p["attn_norm"]["scale"], "norm1": p["ffn_norm"]["scale"]}


def linen():
    layers = {f"layers_{i}": linen_block(PARAMS["layers"][str(i)]) for i in range(ARCH.layers)}
    params = {"params": {"embed": PARAMS["embed"], "norm": PARAMS["norm"]["scale"], **layers}}
    return Linen().apply, params, "params/layers_*", lambda i, n: f"params/layers_{i}/{n.replace('/', '_')}/kernel"


def linen_scan():
    layers = {"block": linen_block(stack_layers(PARAMS)["layers"])}
    params = {"params": {"embed": PARAMS["embed"], "norm": PARAMS["norm"]["scale"], "layers": layers}}
    return (
        Linen(scan=True).apply,
        params,
        "params/layers",
        lambda i, n: f"params/layers/block/{n.replace('/', '_')}/kernel",
    )


# ---- nnx


class NnxBlock(nnx.Module):
    def __init__(self, p, rngs):
        self.gains = nnx.List([nnx.Param(p["attn_norm"]["scale"]), nnx.Param(p["ffn_norm"]["scale"])])
        for name, out in NAMES.items():
            kernel = p[name.split("/")[0]][name.split("/")[1]]
            linear = nnx.Linear(kernel.shape[0], out, use_bias=False, rngs=rngs)
            linear.kernel[...] = kernel
            setattr(self, name.replace("/", "_"), linear)

    def __call__(self, x, angles):
        return layer(lambda n, h: getattr(self, n.replace("/", "_"))(h), [g[...] for g in self.gains], x, angles)


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.embed, self.norm = nnx.Param(PARAMS["embed"]), nnx.Param(PARAMS["norm"]["scale"])
        self.layers = nnx.List([NnxBlock(PARAMS["layers"][str(i)], rngs) for i in range(ARCH.layers)])

    def __call__(self, tokens):
        x, angles = jnp.take(self.embed[...], tokens, axis=0), turns(tokens)
        for block in self.layers:
            x = block(x, angles)
        return head(self.embed[...], self.norm[...], x)


def with_nnx():
    graph, state = nnx.split(Nnx(nnx.Rngs(0)))
    params = nnx.to_pure_dict(state)
    fn = lambda p, tokens: nnx.merge(graph, nnx.State(p))(tokens)  # noqa: E731
    return fn, params, "layers/*", lambda i, n: f"layers/{i}/{n.replace('/', '_')}/kernel"


# ---- equinox


class EqxBlock(eqx.Module):
    linears: dict
    gains: list

    def __init__(self, p):
        self.linears = {}
        for name, out in NAMES.items():
            kernel = p[name.split("/")[0]][name.split("/")[1]]
            linear = eqx.nn.Linear(kernel.shape[0], out, use_bias=False, key=jax.random.key(0))
            self.linears[name.replace("/", "_")] = eqx.tree_at(lambda m: m.weight, linear, kernel.T)
        self.gains = [p["attn_norm"]["scale"], p["ffn_norm"]["scale"]]

    def __call__(self, x, angles):
        return layer(lambda n, h: jax.vmap(jax.vmap(self.linears[n.replace("/", "_")]))(h), self.gains, x, angles)


class Eqx(eqx.Module):
    embed: jax.Array
    norm: jax.Array
    layers: list

    def __call__(self, tokens):
        x, angles = jnp.take(self.embed, tokens, axis=0), turns(tokens)
        for block in self.layers:
            x = block(x, angles)
        return head(self.embed, self.norm, x)


def with_equinox():
    blocks = [EqxBlock(PARAMS["layers"][str(i)]) for i in range(ARCH.layers)]
    params, static = eqx.partition(Eqx(PARAMS["embed"], PARAMS["norm"]["scale"], blocks), eqx.is_array)
    fn = lambda p, tokens: eqx.combine(p, static)(tokens)  # noqa: E731
    return fn, params, "layers/*", lambda i, n: f"layers/{i}/linears/{n.replace('/', '_')}/weight"


def ours_scan():
    return Decoder(ARCH, scan=True), stack_layers(PARAMS), "layers", lambda i, n: f"layers/{n}"


FORMS = {"linen": linen, "linen scan": linen_scan, "nnx": with_nnx, "equinox": with_equinox, "ours scan": ours_scan}


def codes(leaf, i):
    """The codes of one layer in matrix form."""
    op = leaf.op if isinstance(leaf, View) else leaf
    return np.asarray(op.codes if op.codes.ndim == 2 else op.codes[i])


@pytest.fixture(scope="module")
def counted():
    """Our decoder's run, and the programs it made, by kind."""
    made = []
    original = programs.Programs._once

    def counting(self, key, make):
        before = len(self._made)
        out = original(self, key, make)
        if len(self._made) > before:
            made.append((key[0], out))
        return out

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(programs.Programs, "_once", counting)
        return qjax.run(RECIPE, MODEL, PARAMS, BATCHES)[0], made


@pytest.fixture(scope="module")
def reference(counted):
    return counted[0]


@pytest.mark.parametrize("form", FORMS)
def test_identical_codes_in_every_framework(reference, form):
    fn, params, by, path = FORMS[form]()
    x = BATCHES[0]
    np.testing.assert_allclose(jax.jit(fn)(params, x), jax.jit(MODEL)(PARAMS, x), rtol=1e-5, atol=1e-5)
    q, report = qjax.run(RECIPE, fn, params, BATCHES, by=by)
    assert len(report.rows) == ARCH.layers * len(NAMES)
    leaves = leaves_with_paths(q)
    for i in range(ARCH.layers):
        for name in NAMES:
            part, leaf = name.split("/")
            want = np.asarray(reference["layers"][str(i)][part][leaf].codes)
            np.testing.assert_array_equal(codes(leaves[path(i, name)], i), want, err_msg=f"layer {i} {name}")
    run = qjax.quantized(fn, strict=True)
    want = jax.jit(qjax.quantized(MODEL, strict=True))(reference, x)
    np.testing.assert_allclose(jax.jit(run)(q, x), want, rtol=2e-4, atol=2e-4)


def test_one_compilation_for_each_distinct_block(counted):
    made = counted[1]
    measures = [f for kind, f in made if kind == "measure"]
    advances = [f for kind, f in made if kind == "advance"]
    assert len(measures) == 1  # all layers are equal
    assert len(advances) == 2  # the embedding, the layer
    assert all(f._cache_size() == 1 for f in (*measures, *advances))


def mixed(i):
    return "int8_g16_f32" if i == 1 else "int4_g32_f32"


def layer_of(path):
    """The layer in "layers/3/attn/q" or in "params/layers/block/attn_q/kernel[3]"."""
    return int(path[path.rindex("[") + 1 : -1]) if path.endswith("]") else int(path.split("/")[1])


MIXED = qjax.partition(
    {f: qjax.gptq(f) for f in ("int4_g32_f32", "int8_g16_f32")}, lambda p, use, plan: mixed(layer_of(p))
)


@pytest.fixture(scope="module")
def mixed_reference():
    return qjax.run(MIXED, MODEL, PARAMS, BATCHES)


@pytest.mark.parametrize("form", ["ours", "ours scan", "linen scan"])
def test_mixed_formats_per_layer(mixed_reference, form):
    """int8 in groups of 16 in the layer between two of int4 in groups of 32, in one pass over the blocks."""
    fn, params, by, path = (
        FORMS[form]() if form != "ours" else (MODEL, PARAMS, "layers/*", lambda i, n: f"layers/{i}/{n}")
    )
    q, report = mixed_reference if form == "ours" else qjax.run(MIXED, fn, params, BATCHES, by=by)
    assert {layer_of(r["path"]): r["format"] for r in report.rows} == {i: mixed(i) for i in range(ARCH.layers)}
    x = BATCHES[1]
    want = jax.jit(qjax.quantized(MODEL))(mixed_reference[0], x)
    np.testing.assert_allclose(jax.jit(qjax.quantized(fn, strict=True))(q, x), want, rtol=1e-3, atol=1e-3)
    leaves = leaves_with_paths(q)
    stored = [leaves[path(i, "ffn/up")] for i in range(ARCH.layers)]
    assert all(is_leaf(leaf) for leaf in stored)
    if "scan" in form:
        assert isinstance(stored[0], qjax.Stacked)
        assert [op.meta.element.name for op in stored[0].ops] == ["int4", "int8", "int4"]
