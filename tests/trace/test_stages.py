"""Cutting functions into segments: the same network written in every way gives the same cuts and the same numbers."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from qjax.operators import Stacked
from qjax.quantization import quantize
from qjax.trace.observe import observing
from qjax.trace.paths import replace_leaves
from qjax.trace.quantized import quantized
from qjax.trace.signature import Signer
from qjax.trace.stages import CannotCut, stages
from tests import draw
from tests.trace import toys
from tests.trace.toys import INNER, LAYERS, TOKENS, VOCAB, WIDTH

PARAMS = toys.parameters()
STACKED = toys.stacked(PARAMS)
MIDDLE = [f"layers/{i}" for i in range(LAYERS)]
X, MASK = (2, 5, WIDTH), (2, 1, 5, 5)


def check(fn, params, by="layers/*", tokens=TOKENS):
    """Cut, run segment by segment, compare with the whole; every layer is one shared function with a minimal carry."""
    parts = stages(fn, params, tokens, by)
    got, want = jax.jit(lambda p, t: (parts(p, t), fn(p, t)))(params, tokens)
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
    assert [s.kind for s in parts] == ["prologue"] + ["group"] * LAYERS + ["epilogue"]
    assert len({s.fn for s in parts[1:-1]}) == 1, [s.name for s in parts]
    assert all(s.own == s.paths for s in parts[1:-1])
    return parts


def indexed(params, tokens):
    x, mask = params["embed"][tokens], toys.causal(tokens)
    for i in range(LAYERS):
        x = toys.block(jax.tree.map(lambda a, i=i: a[i], params["layers"]), x, mask)
    return toys.norm(x, params["norm"]) @ params["head"]


PLAIN: dict[str, Any] = {
    "plain": (toys.loop(), PARAMS),
    "jitted block": (toys.loop(jax.jit(toys.block)), PARAMS),
    "jit around": (jax.jit(toys.loop(jax.jit(toys.block))), PARAMS),
    "remat block": (toys.loop(jax.checkpoint(toys.block)), PARAMS),  # pyright: ignore[reportPrivateImportUsage]
    "remat around, tied": (jax.checkpoint(toys.loop(tied=True)), PARAMS),  # pyright: ignore[reportPrivateImportUsage]
    "scan": (toys.scanned(), STACKED),
    "jit, scan, remat": (jax.jit(toys.scanned(jax.checkpoint(toys.block))), STACKED),  # pyright: ignore[reportPrivateImportUsage]
    "stacked inside": (lambda p, t: toys.scanned()(toys.stacked(p), t), PARAMS),
    "indexed in Python": (indexed, STACKED),
    "cast at the top": (
        lambda p, t: toys.scanned()(jax.tree.map(lambda a: a.astype(jnp.bfloat16).astype(jnp.float32), p), t),
        STACKED,
    ),
}


@pytest.mark.parametrize("case", PLAIN)
def test_plain_functions(case):
    fn, params = PLAIN[case]
    parts = check(fn, params)
    assert [s.name for s in parts[1:-1]] == MIDDLE
    for s in parts[:-1]:
        assert [c.shape for c in s.carry_out] == [MASK, X]
    assert [path for path, _ in parts[0].paths] == ["embed"]
    assert {path for path, _ in parts[-1].paths} <= {"embed", "head", "norm"}
    if params is STACKED:
        assert {i for _, i in parts[1].paths} == {0} and len(parts[1].paths) == 9


def test_one_compilation_serves_all_layers():
    traces = []

    def counted(p, x, mask):
        traces.append(1)
        return toys.block(p, x, mask)

    fn = toys.loop(counted)
    parts = stages(fn, PARAMS, TOKENS)
    traces.clear()
    carry, compiled = parts.begin(TOKENS), set()
    for s in parts:
        run = jax.jit(s.fn)
        carry = run(s.leaves(PARAMS), carry)
        compiled.add(s.fn)
    assert len(compiled) == 3 and not traces  # the segments hold equations, not the user's Python
    np.testing.assert_allclose(parts.finish(carry), jax.jit(fn)(PARAMS, TOKENS), rtol=2e-5, atol=2e-5)


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        h = nn.RMSNorm()(x)
        q, k, v = (nn.Dense(WIDTH, use_bias=False, name=n)(h) for n in "qkv")
        x = x + nn.Dense(WIDTH, use_bias=False, name="o")(toys.attention(q, k, v, mask))
        h = nn.RMSNorm()(x)
        return x + nn.Dense(WIDTH, name="down")(jax.nn.silu(nn.Dense(INNER, name="gate")(h)) * nn.Dense(INNER)(h))


class ScannedBlock(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        return Block(name="block")(x, mask), None


class Net(nn.Module):
    form: str

    @nn.compact
    def __call__(self, tokens):
        x, mask = nn.Embed(VOCAB, WIDTH, name="embed")(tokens), toys.causal(tokens)
        if self.form == "scan":
            axes: Any = {"params": 0}
            same: Any = nn.broadcast
            scan = nn.scan(nn.remat(ScannedBlock), axes, split_rngs={"params": True}, in_axes=same, length=LAYERS)
            x, _ = scan(name="layers")(x, mask)
        else:
            layer = nn.remat(Block) if self.form == "remat" else Block
            for i in range(LAYERS):
                x = layer(name=f"layers_{i}")(x, mask)
        return nn.Dense(VOCAB, name="head")(nn.RMSNorm(name="norm")(x))


@pytest.mark.parametrize("form", ["loop", "remat", "scan"])
def test_linen(form):
    net = Net(form)
    params = draw.like(jax.eval_shape(net.init, jax.random.key(0), TOKENS))
    parts = check(net.apply, params, "params/layers" if form == "scan" else "params/layers_*")
    assert [c.shape for c in parts[2].carry_out] == [MASK, X]


class EqxBlock(eqx.Module):
    norm: eqx.nn.LayerNorm
    up: eqx.nn.Linear
    down: eqx.nn.Linear

    def __init__(self, key):
        self.norm = eqx.nn.LayerNorm(WIDTH)
        self.up, self.down = eqx.nn.Linear(WIDTH, INNER, key=key), eqx.nn.Linear(INNER, WIDTH, key=key)

    def __call__(self, x):
        return x + self.down(jax.nn.gelu(self.up(self.norm(x))))


class EqxNet(eqx.Module):
    embed: eqx.nn.Embedding
    layers: list
    head: eqx.nn.Linear
    final: Any = jax.nn.relu  # a leaf that is no array

    def __call__(self, tokens):
        x = jax.vmap(self.embed)(tokens)
        for layer in self.layers:
            x = jax.vmap(layer)(x)
        return jax.vmap(self.head)(self.final(x))


def test_equinox():
    def make(key):
        layers = [EqxBlock(key) for _ in range(LAYERS)]
        return EqxNet(eqx.nn.Embedding(VOCAB, WIDTH, key=key), layers, eqx.nn.Linear(WIDTH, VOCAB, key=key))

    shapes, rest = eqx.partition(
        eqx.filter_eval_shape(make, jax.random.key(1)), lambda leaf: isinstance(leaf, jax.ShapeDtypeStruct)
    )
    arrays = draw.like(shapes)
    net = eqx.combine(arrays, rest)
    parts = stages(lambda net, tokens: jax.vmap(net)(tokens), net, TOKENS)  # a tree with leaves that are no arrays
    assert len({s.fn for s in parts[1:-1]}) == 1 and len(parts) == LAYERS + 2
    parts = check(lambda arrays, tokens: jax.vmap(eqx.combine(arrays, rest))(tokens), arrays)
    assert ("layers/1/down/weight", None) in parts[2].paths
    assert [c.shape for c in parts[2].carry_out] == [X]


class NnxBlock(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.RMSNorm(WIDTH, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(2, WIDTH, decode=False, rngs=rngs)
        self.ffn = nnx.Linear(WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x, mask):
        x = x + self.attention(self.norm(x), mask=mask)
        return x + jax.nn.gelu(self.ffn(x))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.embed = nnx.Embed(VOCAB, WIDTH, rngs=rngs)
        self.layers = nnx.List([NnxBlock(rngs) for _ in range(LAYERS)])
        self.head = nnx.Linear(WIDTH, VOCAB, rngs=rngs)

    def __call__(self, tokens):
        x, mask = self.embed(tokens), toys.causal(tokens)
        for layer in self.layers:
            x = layer(x, mask)
        return self.head(x)


def test_nnx():
    graph, state = nnx.split(nnx.eval_shape(lambda: NnxNet(nnx.Rngs(0))))
    state = draw.like(state)
    parts = check(lambda state, tokens: nnx.merge(graph, state)(tokens), state)
    assert [c.shape for c in parts[2].carry_out] == [MASK, X]


@pytest.mark.parametrize("reverse", [False, True])
def test_scan_that_counts_carries_a_key_and_collects(reverse):
    def fn(p, tokens):
        mask = toys.causal(tokens)

        def body(carry, xs):
            x, key = carry
            w, i, extra = xs
            key, sub = jax.random.split(key)
            x = toys.block(w, x, mask) * (1 + i.astype(jnp.float32)) + extra + jax.random.normal(sub, x.shape)
            return (x, key), x.sum(-1)

        xs = (p["layers"], jnp.arange(LAYERS), jnp.linspace(0, 1, LAYERS))
        (x, _), sums = jax.lax.scan(body, (p["embed"][tokens], jax.random.key(3)), xs, reverse=reverse)
        return toys.norm(x, p["norm"]).sum(-1)[None] + sums

    parts = check(fn, STACKED, "layers")
    assert [s.name for s in parts[1:-1]] == (MIDDLE[::-1] if reverse else MIDDLE)


def test_two_stacks_and_labels():
    """Encoder then decoder; what the batch holds for the loss alone waits in the carry as it came."""
    params = {"a": PARAMS["layers"], "b": {k: PARAMS["layers"][k] for k in "01"}, "embed": PARAMS["embed"]}

    def fn(p, batch):
        mask = toys.causal(batch["tokens"])
        x = p["embed"][batch["tokens"]]
        for k in sorted(p["a"]):
            x = toys.block(p["a"][k], x, mask)
        for k in sorted(p["b"]):
            x = toys.block(p["b"][k], x, mask)
        hot = jax.nn.one_hot(batch["labels"], VOCAB)
        return -(hot * jax.nn.log_softmax(x @ p["embed"].T)).sum(-1).mean()

    batch = {"tokens": TOKENS, "labels": TOKENS}
    parts = stages(fn, params, batch, ("a/*", "b/*"))
    np.testing.assert_allclose(*jax.jit(lambda p, b: (parts(p, b), fn(p, b)))(params, batch), rtol=1e-5)
    assert [s.name for s in parts] == ["prologue", "a/0", "a/1", "a/2", "b/0", "b/1", "epilogue"]
    assert len({s.fn for s in parts[1:-1]}) == 1
    assert sorted(str(c.dtype) for c in parts[0].carry_out) == [
        "bool",
        "float32",
        "int32",
    ]  # mask, x, labels: no one-hot


def test_middle_parameters_skips_and_auxiliary_outputs():
    """A leaf of no group in the middle, a skip connection, a sum over layers, an unused group."""
    params = PARAMS | {"bridge": jnp.eye(WIDTH), "layers": PARAMS["layers"] | {"9": jnp.ones(3)}}

    def fn(p, tokens):
        x, mask, aux = p["embed"][tokens], toys.causal(tokens), []
        first = None
        for i in range(LAYERS):
            x = toys.block(p["layers"][str(i)], x, mask)
            aux.append((x**2).mean())
            first = x if first is None else first
            if i == 1:
                x = x @ p["bridge"]
        return {"logits": (x + first) @ p["head"], "aux": sum(aux[1:], aux[0]), "fixed": 3}

    parts = stages(fn, params, TOKENS)
    got, want = jax.jit(lambda p, t: (parts(p, t), fn(p, t)))(params, TOKENS)
    np.testing.assert_allclose(got["logits"], want["logits"], rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(got["aux"], want["aux"], rtol=1e-5)
    assert got["fixed"] == 3 and parts.unused == ("layers/9",)
    assert sum(("bridge", None) in s.paths for s in parts) == 1
    assert [path for path, _ in parts[-1].paths] == ["head"]


def test_a_middle_parameter_is_used_by_one_segment_and_own_excludes_it():
    params = PARAMS | {"bias": jnp.ones(WIDTH)}

    def fn(p, tokens):
        x = p["embed"][tokens]
        for i in range(LAYERS):
            layer = p["layers"][str(i)]
            x = jnp.tanh(x @ layer["attn"]["q"] + p["bias"][None, None]) @ layer["attn"]["o"]
        return x

    parts = stages(fn, params, TOKENS)
    assert all(("bias", None) in s.paths and ("bias", None) not in s.own for s in parts[1:-1])
    assert len({s.fn for s in parts[1:-1]}) == 1


def test_gradients_and_derivative_rules_survive():
    @jax.custom_vjp
    def marked(x):
        return x

    marked.defvjp(lambda x: (x, None), lambda _, g: (7 * g,))
    fn = toys.loop(lambda p, x, mask: toys.block(p, marked(x), mask))
    parts = check(fn, PARAMS)
    s = parts[1]
    mask, x = parts[0].fn(parts[0].leaves(PARAMS), parts.begin(TOKENS))
    cut = jax.grad(lambda x: (s.fn(s.leaves(PARAMS), (mask, x))[1] ** 2).sum())
    whole = jax.grad(lambda x: (toys.block(PARAMS["layers"]["0"], marked(x), mask) ** 2).sum())
    got, want = jax.jit(lambda x: (cut(x), whole(x)))(x)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_rules_that_differ_do_not_share_a_function():
    def scaled(k):
        f = jax.custom_jvp(lambda x: x * 2)
        f.defjvp(lambda p, t: (f(*p), t[0] * k))
        return f

    a, b = scaled(3.0), scaled(4.0)
    eqns = jax.make_jaxpr(lambda x: (a(x), a(x), b(x)))(1.0).eqns
    signer = Signer()
    keys = [signer.equation(e) for e in eqns]
    assert keys[0] == keys[1] != keys[2]


def test_what_cannot_be_cut_says_why():
    model = toys.loop()
    with pytest.raises(CannotCut, match=r"scan at test_stages.py:\d+ .* encloses .*microbatches"):
        stages(lambda p, t: jax.lax.map(lambda row: model(p, row[None]), t), PARAMS, TOKENS)
    with pytest.raises(CannotCut, match="scan over the stacked layers"):
        stages(lambda p, t: jax.lax.map(lambda row: toys.scanned()(p, row[None]), t), STACKED, TOKENS, "layers")
    with pytest.raises(CannotCut, match="cond at"):
        stages(lambda p, t: jax.lax.cond(t.sum() > 0, model, lambda p, t: -model(p, t), p, t), PARAMS, TOKENS)
    kept = jax.custom_jvp(model)
    kept.defjvp(lambda p, t: (model(*p), model(*t)))
    with pytest.raises(CannotCut, match=r"custom_jvp_call at .*derivative rule"):
        stages(kept, PARAMS, TOKENS)
    with pytest.raises(CannotCut, match="mul stands between"):
        stages(lambda p, t: toys.scanned()(jax.tree.map(lambda a: a * 2, p), t), STACKED, TOKENS)
    with pytest.raises(ValueError, match="selects no leaf; the leaves are embed"):
        stages(model, PARAMS, TOKENS, "blocks/*")


def test_wrong_batches_and_leaves():
    parts = stages(toys.loop(), PARAMS, TOKENS)
    with pytest.raises(ValueError, match=r"int32\[2, 5\], this one has int32\[2, 4\]"):
        parts.begin(TOKENS[:, :4])
    with pytest.raises(ValueError, match="this batch is a"):
        parts.begin({"tokens": TOKENS})
    with pytest.raises(ValueError, match="takes 9 leaves and 2 carried values, not 1 and 2"):
        parts[1].fn((TOKENS,), (TOKENS, TOKENS))


@pytest.mark.parametrize("form", ["loop", "scan"])
def test_segments_run_on_operators_and_are_observed(form):
    """Layer by layer in mixed formats: the same numbers as the whole function on the tree put together."""
    fn, params = (toys.loop(), PARAMS) if form == "loop" else (toys.scanned(), STACKED)
    parts = stages(fn, params, TOKENS)
    carry, new = parts.begin(TOKENS), {}
    seen = jax.jit(observing(parts[1].fn, ("count", "absmax")))
    for n, s in enumerate(parts):
        leaves = list(s.leaves(params))
        if s.kind == "group":
            found = seen(tuple(leaves), carry)[1]
            assert len(found) == 7 and all(v["count"] == TOKENS.size for v in found.values())
            for j, leaf in enumerate(leaves):
                if leaf.ndim == 2:
                    leaves[j] = new[s.paths[j]] = quantize(leaf, "int8" if n % 2 else "int4_g4")
        carry = jax.jit(quantized(s.fn, strict=True))(tuple(leaves), carry)
    layers: dict[str, list[Any]] = {}
    for (path, _), leaf in new.items():
        layers.setdefault(path, []).append(leaf)
    joined = {path: each[0] if form == "loop" else Stacked(tuple(each)) for path, each in layers.items()}
    whole = jax.jit(quantized(fn, strict=True))(replace_leaves(params, joined), TOKENS)
    np.testing.assert_allclose(parts.finish(carry), whole, rtol=1e-5, atol=1e-5)
