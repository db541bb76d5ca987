"""Methods for outliers in activations: the function kept, and the mathematics against loops written from the papers."""

from __future__ import annotations

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax import recipes, transforms
from qjax.equivalence.outlier_balance import greedy_rotation, spreading, zigzag
from qjax.models import Architecture, Decoder
from qjax.operators import Columns, Post, Pre, Quantize, Shift
from qjax.operators.operator import walk
from qjax.solvers import shift_and_scale
from qjax.solvers.channel_parts import in_parts
from qjax.statistics import Reservoir
from qjax.trace.paths import leaves_with_paths, replace_leaves
from qjax.trace.topology import Norm, Port, Topology
from qjax.transforms.leaves import Core
from qjax.transforms.matrices import behind_maps
from tests import draw

ARCH = Architecture(vocab=40, width=24, layers=1, heads=4, kv_heads=2, head_dim=6, ffn=24, qkv_bias=True, tied=False)
MODEL = Decoder(ARCH)


def subject():
    """A decoder with a channel of outliers behind each norm, and biases."""
    p = draw.parameters(ARCH)
    leaves = leaves_with_paths(p)
    odd = {path: 0.3 * jnp.ones_like(v) for path, v in leaves.items() if path.endswith("_bias")}
    odd |= {path: v.at[3].set(10.0) for path, v in leaves.items() if path.endswith("norm/scale")}
    return replace_leaves(p, odd), draw.integers(1, 0, ARCH.vocab, 2, 9)


def apart(model, p, q, x) -> float:
    a, b = jax.jit(model)(p, x), jax.jit(qjax.tapped(model))(q, x)
    return float(jnp.max(jnp.linalg.norm(a - b, axis=-1) / jnp.linalg.norm(a, axis=-1)))


def test_the_network_is_kept_and_folded():
    p, tokens = subject()
    move = transforms.shift_and_scale("int4_affine", "int4_tensor_affine", points=4)
    q, report = qjax.run(move, MODEL, p, [tokens], schedule="whole")
    assert apart(MODEL, p, q, tokens) <= 5e-5
    assert {row["path"] for row in report.rows} == set(report.targets)
    folded, stayed = qjax.fold(q, MODEL.topology)
    assert apart(MODEL, p, folded, tokens) <= 5e-5
    # An RMSNorm takes the scales and has no bias for the shifts; what those left behind q joins q's bias.
    assert [s.map for s in stayed if s.path.endswith("/q")] == ["Shift"]
    leaves = leaves_with_paths(folded)
    posts = {path: any(isinstance(node, Post) for _, node in walk(leaf)) for path, leaf in leaves.items()}
    assert [posts[f"layers/0/{name}"] for name in ("attn/q", "ffn/up")] == [False, True]
    assert float(jnp.abs(leaves["layers/0/attn/q_bias"] - 0.3).max()) > 0.1


def test_shifts_and_scales_join_a_layer_norm():
    rng = np.random.default_rng(0)
    p = {"gain": rng.uniform(0.5, 2, 6), "bias": rng.normal(size=6), "w": rng.normal(size=(6, 4)), "own": np.ones(4)}
    p = {name: jnp.asarray(v, jnp.float32) for name, v in p.items()}

    def layer(p, x):
        x = x - jnp.mean(x, -1, keepdims=True)
        return (x * p["gain"][None] + p["bias"][None]) @ p["w"] + p["own"][None]

    x = jnp.asarray(rng.normal(size=(20, 6)), jnp.float32)
    wiring = Topology(
        norms=(Norm("gain", (Port("w", -2),), "bias"),), writers=(Port("w", -1, "own"),), readers=(Port("w", -2),)
    )
    move = transforms.shift_and_scale("int4_affine", "int4_tensor_affine", points=4)
    q, _ = qjax.run(move, layer, p, [x], schedule="whole", where="w")
    folded, stayed = qjax.fold(q, wiring)
    assert not stayed and all(isinstance(v, jax.Array) for v in folded.values())
    np.testing.assert_allclose(layer(folded, x), layer(p, x), rtol=1e-4, atol=1e-5)
    assert float(jnp.abs(folded["own"] - p["own"]).max()) > 0.1 < float(jnp.abs(folded["bias"] - p["bias"]).max())


def test_a_gram_matrix_follows_a_shift():
    """GPTQ behind a shift sees the Gram matrix of what it is given, in the same pass and in a later one."""
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(2, 1, (20, 8)), jnp.float32)
    w = jnp.asarray(rng.normal(size=(8, 4)), jnp.float32)
    seen = []

    def note(stage, key):
        seen.append(behind_maps("", core(stage), stage, ("gram",))["gram"])
        return transforms.Edit(rows={"": {}})

    def core(stage):
        return Core.of(stage.params[""], stage.uses[""])

    watch = transforms.stateless("watch", "leaf", note, transforms.Needs(statistics=("gram",)))
    later = watch._replace(scope="model")
    move = transforms.shift_and_scale("int4_affine", "int4_tensor_affine", points=4)
    q, _ = qjax.run(qjax.chain(move, watch, later), lambda p, x: x @ p, w, [x[:12], x[12:]], schedule="whole")
    assert isinstance(q.op.T, Shift) and isinstance(q.op.op, Post)
    y = q.op.T.apply(q.T.apply(x))
    for gram in seen:
        np.testing.assert_allclose(gram, y.T @ y, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(qjax.matmul(x, q), x @ w, rtol=1e-5, atol=1e-4)


def test_the_largest_tokens_are_kept_however_they_are_split():
    x = draw.normal(0, 30, 4) * jnp.linspace(1, 9, 30)[:, None]
    x = x.at[7].set(x[12])  # equal rows count once
    s = Reservoir(5, largest=True)
    one, two = jax.jit(
        lambda x: (s.update(s.init(4), x), s.merge(s.update(s.init(4), x[20:]), s.update(s.init(4), x[:20])))
    )(x)
    np.testing.assert_array_equal(one.rows, two.rows)
    size = np.unique(np.abs(np.asarray(x)).max(1))[::-1]
    np.testing.assert_array_equal(np.abs(np.asarray(one.rows)).max(1), size[:5])


def test_zigzag_deals_as_the_paper_says():
    size = np.random.default_rng(0).permutation(24).astype(np.float32)
    order = np.asarray(zigzag(jnp.asarray(size), 6))
    blocks, at, step = [[] for _ in range(4)], 0, 1
    for channel in np.argsort(-size):
        blocks[at].append(channel)
        if not 0 <= at + step < 4:
            step = -step  # the last block of a row is the first of the next
        else:
            at += step
    assert order.reshape(4, 6).tolist() == blocks
    means = size[order].reshape(4, 6).mean(1)
    assert means.max() - means.min() < 1  # in place they are 4 apart and more


def test_greedy_rotations_spread_and_never_make_it_worse():
    np.testing.assert_allclose(spreading(8)[0], np.full(8, 8**-0.5), atol=1e-6)
    np.testing.assert_allclose(spreading(8) @ spreading(8).T, np.eye(8), atol=1e-6)
    x = draw.normal(0, 40, 16).at[3, 5].set(100.0)
    peaks = []
    for steps in (0, 1, 2, 6, 24):
        r = np.asarray(greedy_rotation(x, jax.random.key(0), size=8, steps=steps), np.float64)
        np.testing.assert_allclose(r @ r.T, np.eye(8), atol=2e-6)
        peaks.append(np.abs(np.asarray(x, np.float64).reshape(-1, 8) @ r).max())
    assert peaks[0] == 100 and all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise(peaks))
    assert peaks[-1] < 60
    # One step: the row of the outlier's channel is a row of the spreading matrix behind the rotation of the others.
    turn = np.asarray(greedy_rotation(x, jax.random.key(0), size=8, steps=1))
    assert abs(turn[5, 5]) == pytest.approx(8**-0.5, abs=1e-6)


def test_shift_and_scale_is_the_papers_search():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(20, 6)) * [1, 1, 8, 1, 2, 1] + [0, 0, 5, 0, -3, 0]
    w = rng.normal(size=(6, 5))
    fmt = qjax.formats.as_format("int4_affine_f32")
    tensor = qjax.formats.as_format("int4_tensor_absmax_f32")
    f32 = [jnp.asarray(a, jnp.float32) for a in (x, np.ones(20), x.min(0), x.max(0))]
    found = shift_and_scale.search(
        [jnp.asarray(w[:, :2], jnp.float32), jnp.asarray(w[:, 2:], jnp.float32)], *f32, weights=fmt, inputs=tensor,
        points=9,
    )  # fmt: skip

    def affine(v, axis=None):
        low, high = np.minimum(v.min(axis, keepdims=True), 0), np.maximum(v.max(axis, keepdims=True), 0)
        step = (high - low) / 15
        zero = np.rint(-low / step)
        return (np.clip(np.rint(v / step) + zero, 0, 15) - zero) * step

    z = (x.max(0) + x.min(0)) / 2
    np.testing.assert_allclose(found.shift, z, rtol=1e-5, atol=1e-6)
    size, errors = np.abs(x - z).max(0), []
    grid = np.geomspace(size.max(), 0.1, 9)
    for t in grid:
        s = np.maximum(1, size / t)
        step = np.abs((x - z) / s).max() / 7
        errors.append(np.sum((np.rint((x - z) / s / step) * step @ affine(s[:, None] * w, 0) - (x - z) @ w) ** 2))
    np.testing.assert_allclose(found.errors, errors, rtol=1e-3)
    np.testing.assert_allclose(found.threshold, grid[np.argmin(errors)], rtol=1e-4)
    np.testing.assert_allclose(found.scale, np.maximum(1, size / grid[np.argmin(errors)]), rtol=1e-4)
    assert min(errors) < 0.9 * errors[0]


def test_parts_by_gptq_are_gptq_of_the_whole():
    w, x = draw.normal(0, 16, 8), draw.normal(1, 64, 16) * jnp.linspace(0.5, 3, 16)[None]
    gram = x.T @ x
    order = jnp.asarray(np.random.default_rng(0).permutation(16), jnp.int32)
    parts = in_parts(w, order, (8, 8), ("int4_g8_f32", "int4_g8_f32"), gram)
    whole, _ = qjax.solvers.gptq.solve(w[order], gram[order][:, order], "int4_g8_f32", groups="fresh")
    got, want = (np.asarray(qjax.dense(op)) for op in (Columns(parts), whole))
    # The second part's scales are those of repaired weights: GPTQ's with scales found as a group begins, from row 8 on.
    np.testing.assert_allclose(got[:8], want[:8], atol=1e-5)
    np.testing.assert_allclose(got[8:], want[8:], atol=1e-5)


def linear(p, x):
    return x @ p["w"]


def outlying(channels=(3, 10)):
    x = np.random.default_rng(0).normal(size=(40, 16)).astype(np.float32)
    x[:, list(channels)] *= 20
    return {"w": draw.normal(0, 16, 4)}, jnp.asarray(x)


def test_llm_int8_keeps_the_channels_above_the_threshold():
    p, x = outlying()
    q, report = qjax.run(recipes.llm_int8(), linear, p, [x[:20], x[20:]], schedule="whole")
    op = q["w"]
    assert isinstance(op, Columns) and op.sizes == (14, 2) and sorted(op.order[14:].tolist()) == [3, 10]
    assert op.ops[1].dtype == jnp.float16
    y = jax.jit(qjax.quantized(linear, strict=True))(q, x)
    a, b = np.asarray(x, np.float64), np.asarray(p["w"], np.float64)
    rest = [c for c in range(16) if c not in (3, 10)]
    sx, sw = (np.abs(v).max(axis, keepdims=True) / 127 for v, axis in ((a[:, rest], 1), (b[rest], 0)))
    want = (np.rint(a[:, rest] / sx) @ np.rint(b[rest] / sw)) * sx * sw + a[:, [3, 10]] @ b[[3, 10]]
    np.testing.assert_allclose(y, want, rtol=1e-3, atol=0.03)  # the two channels' weights are float16
    plain, _ = qjax.run(recipes.w8a8(), linear, p, [x], schedule="whole")
    errors = [np.linalg.norm(qjax.quantized(linear)(leaves, x) - a @ b) for leaves in (q, plain)]
    assert errors[0] < 0.3 * errors[1]
    (row,) = report.rows
    assert row["bits"] == (2 * 16 + 14 * 8) / 16 + 4 * 32 / 64 + 16 * 32 / 64  # and scales, and the order
    few, _ = qjax.run(recipes.llm_int8(1e9), linear, p, [x], schedule="whole")
    assert isinstance(few["w"], Pre) and isinstance(few["w"].T, Quantize)


def test_atom_puts_the_largest_channels_last_and_in_eight_bits():
    p, x = outlying()
    recipe = recipes.atom("int4_g7_absmax", "int4_g7_absmax", cache=None, count=2)
    q, report = qjax.run(recipe, linear, p, [x], schedule="whole")
    op = q["w"]
    assert op.sizes == (14, 2) and sorted(op.order[14:].tolist()) == [3, 10]
    assert [part.op.meta.element.bits for part in op.ops] == [4, 8]
    assert [part.T.format.element.bits for part in op.ops] == [4, 8]
    order = np.asarray(op.order)
    a = np.asarray(x, np.float64)[:, order]
    groups = a[:, :14].reshape(40, 2, 7)
    step = np.abs(groups).max(-1, keepdims=True) * 0.9 / 7
    step = np.asarray(jnp.asarray(step, jnp.bfloat16), np.float64)  # scales are stored so
    narrow = (np.clip(np.rint(groups / step), -8, 7) * step).reshape(40, 14)
    wide = a[:, 14:]
    s = np.abs(wide).max(1, keepdims=True) / 127
    want = narrow @ np.asarray(qjax.dense(op.ops[0].op)) + np.rint(wide / s) * s @ np.asarray(qjax.dense(op.ops[1].op))
    got = np.asarray(jax.jit(qjax.quantized(linear, strict=True))(q, x))
    assert np.linalg.norm(got - want) < 5e-3 * np.linalg.norm(want)
    plain = qjax.chain(qjax.gptq("int4_g7"), qjax.act_quantize("int4_g7"))
    other, _ = qjax.run(plain, linear, p, [x], schedule="whole")
    errors = [np.linalg.norm(qjax.quantized(linear)(leaves, x) - x @ p["w"]) for leaves in (q, other)]
    assert errors[0] < 0.7 * errors[1] and report.rows[0]["error_after"] < report.rows[0]["error_before"]


def experts(p, x):
    return jnp.einsum("etk,ekn->etn", x, p["w"])


def test_experts_have_channels_and_maps_of_their_own():
    p = {"w": draw.normal(0, 2, 16, 4)}
    x = jnp.stack([outlying((3, 10))[1], outlying((5,))[1]])

    def error(recipe) -> float:
        q, _ = qjax.run(recipe, experts, p, [x], schedule="whole")
        return float(jnp.linalg.norm(qjax.quantized(experts, strict=True)(q, x) - experts(p, x)))

    assert error(recipes.llm_int8()) < 0.01 * float(jnp.linalg.norm(experts(p, x)))
    plain = error(qjax.chain(qjax.rtn("int8_affine"), qjax.act_quantize("int4_affine")))
    assert error(recipes.duquant("int8_affine", block=8, steps=16, clip=(1.0, 1.0))) < 0.8 * plain


def small():
    p, x = outlying()
    return p, [x]


BAD = {
    "blocks of 10 do not divide": lambda: qjax.run(transforms.balance_outliers(10), linear, *small(), schedule="whole"),
    "give a block of at least 2": lambda: transforms.balance_outliers(1),
    "0 points; give at least 1": lambda: transforms.shift_and_scale("int4", "int4", points=0),
    "threshold 0": lambda: transforms.float_outliers(threshold=0),
    "16 wide channels of 16": lambda: qjax.run(
        transforms.narrow_and_wide(count=16), linear, *small(), schedule="whole"
    ),
    "by 'magic'": lambda: transforms.narrow_and_wide(method="magic"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
