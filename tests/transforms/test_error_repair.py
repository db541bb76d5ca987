"""Low rank, scales, corrections and mixtures as transforms of a model: each leaf holds what the solver says."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax import evaluate, recipes, transforms
from qjax.operators import Columns, Diag, Factored, Post, Pre, Shift, Sparse, Sum
from qjax.solvers import awq, d2quant, glowq, loftq, low_rank, mixed_groups, nupes, rtn, whitening
from qjax.transforms import masked
from qjax.transforms.smoothing import migration
from tests import draw

K, T = 16, 40  # every matrix has one shape, so every method is compiled once
FMT = "int3_g8_f32"
NAMES = ("gate", "up", "down")


def block(p, x):
    h = x * p["gain"][None]
    return x + (jnp.tanh(h @ p["gate"]) * (h @ p["up"])) @ p["down"]


def model(p, x):
    for name in sorted(p["layers"]):
        x = block(p["layers"][name], x)
    return x


def params():
    keys = iter(jax.random.split(jax.random.key(0), 6))
    layers = {str(i): {n: jax.random.t(next(keys), 4.0, (K, K)) / 6 for n in NAMES} for i in range(2)}
    return {"layers": {i: {"gain": jnp.ones(K), **layer} for i, layer in layers.items()}}


def batches():
    scale = jnp.exp(jnp.linspace(-1.5, 2.5, K))[None]
    return [jax.random.normal(k, (T, K)) * scale + 0.3 * scale for k in jax.random.split(jax.random.key(1), 2)]


P, BATCHES = params(), batches()
FIRST, SECOND = P["layers"]["0"], P["layers"]["1"]
X = jnp.concatenate(BATCHES)  # what gate and up of the first layer read
GRAM = X.T @ X
RTN = qjax.rtn(FMT)
Q = {n: qjax.dequantize(qjax.quantize(w, FMT)) for n, w in FIRST.items() if n in NAMES}


def on(transform, *endings):
    """Only on the leaves whose path ends so."""
    return masked(transform, lambda path, use, plan: path.endswith(endings))


def run(*recipe, **options):
    q, report = qjax.run(qjax.chain(*recipe), model, P, BATCHES, **options)
    return q["layers"]["0"], q["layers"]["1"], report


def output_error(w, approximation) -> float:
    return float(jnp.linalg.norm(X @ (w - approximation)))


def test_each_weighting_of_low_rank_is_its_solvers():
    by = {"gate": "diagonal", "up": "gram", "down": "none"}
    first, second, report = run(
        RTN,
        *(on(transforms.low_rank(4, scale=scale), f"0/{name}") for name, scale in by.items()),
        on(transforms.low_rank(4, scale="gram", store="int8"), "1/down"),
        on(transforms.shared_low_rank(4), "1/gate", "1/up"),
        stream="float",
    )
    scales = {"none": None, "diagonal": jnp.sqrt(jnp.diagonal(GRAM)), "gram": whitening.whiten(GRAM)}
    for name, scale in by.items():
        a, b = low_rank(FIRST[name], Q[name], 4, scales[scale])
        np.testing.assert_allclose(qjax.dense(first[name].ops[1]), a @ b, atol=1e-4)
    rows = {(r["path"], r["method"]): r for r in report.rows}
    row = rows["layers/0/up", "low_rank 4 gram"]
    assert row["bits"] == 3 + 32 / 8 + 32 * 4 * 2 / K and row["error_after"] < row["error_before"]
    factors = second["down"].ops[1]
    assert isinstance(factors.a, qjax.QArray) and isinstance(factors.b, qjax.QArray)
    row = rows["layers/1/down", "low_rank 4 gram"]
    assert row["bits"] == 3 + 32 / 8 + (8 * 4 * 2 + 16 * (4 + K) / K) / K and row["error_after"] < row["error_before"]
    # The shared factor is one array and counts once.
    gate, up = second["gate"].ops[1], second["up"].ops[1]
    assert gate.a is up.a
    x = block(FIRST, X)
    root = whitening.whiten(glowq.shrunk(x.T @ x))
    errors = [SECOND[n] - qjax.dequantize(second[n].ops[0]) for n in ("gate", "up")]
    a, (b, c) = glowq.shared(errors, 4, root)
    for held, factor in ((gate, b), (up, c)):
        np.testing.assert_allclose(qjax.dense(held), a @ factor, atol=1e-3 * float(jnp.abs(a @ factor).max()))
    both = evaluate.bpw({"gate": second["gate"], "up": second["up"]}, ["gate", "up"])
    assert both == 3 + 32 / 8 + 32 * 4 * 3 / (2 * K)


def test_alternation_and_aser():
    first, second, report = run(
        on(transforms.alternate(FMT, 4, steps=3, scale="gram"), "0/up"),
        on(transforms.smooth_outliers(3), "1/gate", "1/up"),
        on(transforms.aser(FMT, rank=4, outliers=3), "1/gate", "1/up"),
        on(transforms.aser(FMT, alpha=0.9, outliers=3), "0/gate", "0/down"),
    )
    found = loftq.alternate(FIRST["up"], lambda w: rtn(w, FMT), 4, steps=3, scale=whitening.whiten(GRAM))
    expected = qjax.dequantize(found.q) + found.a @ found.b
    np.testing.assert_allclose(
        output_error(FIRST["up"], qjax.dense(first["up"])), output_error(FIRST["up"], expected), rtol=1e-2
    )
    assert all(r["error_after"] < r["error_before"] for r in report.rows if r["error_after"] is not None)
    leaf = second["up"]
    assert isinstance(leaf, Pre) and isinstance(leaf.T, Diag) and isinstance(leaf.op, Sum)
    chosen = np.asarray(leaf.T.scale < 1).nonzero()[0]
    assert 2 <= len(chosen) <= 3 and not np.asarray(qjax.dequantize(leaf.op.ops[0]))[chosen].any()
    assert leaf.op.ops[1].rank == 4 and jnp.array_equal(leaf.T.scale, second["gate"].T.scale)
    assert 1 < first["gate"].ops[1].rank < K


def test_scales_are_searched_and_learned():
    first, second, report = run(
        on(transforms.learned_scale(FMT, steps=40, rate=0.004), "1/gate", "1/up", "1/down"),
        on(transforms.awq(FMT), "0/gate", "0/up"),
        on(transforms.dual_scale(FMT), "0/down"),
        on(transforms.clip(FMT), "0/gate"),
        on(RTN, "0/up", "0/down", "1/gate", "1/up", "1/down"),
        stream="float",
    )
    found = awq.search((FIRST["gate"], FIRST["up"]), GRAM, jnp.mean(jnp.abs(X), 0), FMT)
    for name in ("gate", "up"):
        np.testing.assert_allclose(first[name].T.scale, 1 / found.scale, rtol=1e-4)
    s = found.scale
    clipped = awq.clipped(s[:, None] * FIRST["gate"], GRAM / s[:, None] / s[None, :], FMT)
    assert np.mean(np.asarray(first["gate"].op.codes == clipped.codes)) > 0.99
    np.testing.assert_allclose(first["down"].T.scale, d2quant.dual_scale(FIRST["down"], FMT).scale, rtol=1e-5)
    rows = {(r["path"], r["method"].split()[0]): r for r in report.rows}
    assert rows["layers/0/up", "awq"]["format"] == f"alpha {float(found.alpha):g}"
    row = rows["layers/1/up", "learned_scale"]
    assert row["error_after"] <= row["error_before"]  # forty steps on one small block may find nothing
    assert jnp.array_equal(second["up"].T.scale, second["gate"].T.scale)
    x = block(FIRST, X)
    rounded = {n: qjax.dense(second[n]) for n in NAMES}
    left = jnp.mean((block({"gain": SECOND["gain"], **rounded}, x) - block(SECOND, x)) ** 2)
    np.testing.assert_allclose(left, row["error_after"], rtol=1e-2)


def test_learned_scales_tame_a_channel_whose_weights_are_large_and_inputs_small():
    leaves = {str(i): draw.normal(20 + i, K, K).at[3].multiply(10.0) for i in range(6)}
    x = jnp.stack([draw.normal(120 + i, 64, K).at[:, 3].multiply(0.1) for i in range(6)])

    def each(p, x):
        return jnp.stack([x[int(i)] @ w for i, w in p.items()])

    learned = transforms.learned_scale("int4_g8_narrow_f32", steps=100, rate=0.03)
    _, report = qjax.run(learned, each, leaves, [x], schedule="whole")
    row = report.rows[0]
    assert row["error_after"] < 0.9 * row["error_before"]


def test_one_alpha_for_the_model():
    alphas = (0.0, 0.5, 1.0)
    first, _, report = run(transforms.smooth_search(FMT, alphas=alphas), RTN)
    sizes = {}
    x = X
    for i, layer in P["layers"].items():
        inner = jnp.tanh(x @ layer["gate"]) * (x @ layer["up"])
        sizes[i] = {"gate": jnp.abs(x).max(0), "up": jnp.abs(x).max(0), "down": jnp.abs(inner).max(0)}
        x = block(layer, x)
    errors, scales = [], []
    for alpha in alphas:
        done = {}
        for i, layer in P["layers"].items():
            pair = migration(sizes[i]["up"], [layer["gate"], layer["up"]], alpha)
            s = {"gate": pair, "up": pair, "down": migration(sizes[i]["down"], [layer["down"]], alpha)}
            new = {n: qjax.dequantize(qjax.quantize(s[n][:, None] * layer[n], FMT)) / s[n][:, None] for n in NAMES}
            done[i] = {"gain": layer["gain"], **new}
            scales.append(pair)
        errors.append(float(jnp.mean((model({"layers": done}, X) - x) ** 2)))
    best = int(np.argmin(errors))
    assert report.rows[0]["format"] == f"alpha {alphas[best]:g}"
    np.testing.assert_allclose(first["up"].T.scale, 1 / scales[2 * best], rtol=1e-4)


def test_means_are_restored():
    first, second, _ = run(
        RTN,
        on(transforms.mean_shift(), "1/gate", "1/up"),
        on(transforms.bias_correction(paired=True), "1/down"),
        on(transforms.bias_correction(), "0/gate"),
    )
    layer = {"gain": FIRST["gain"], **{n: first[n] for n in NAMES}}
    x = qjax.quantized(block)(layer, X)
    shift = jnp.mean(block(FIRST, X) - x, axis=0)
    for name in ("gate", "up"):
        assert isinstance(second[name].T, Shift)
        np.testing.assert_allclose(second[name].T.offset, shift, atol=1e-4)
    assert isinstance(first["gate"], Post)
    np.testing.assert_allclose(first["gate"].T.offset, jnp.mean(X, 0) @ (FIRST["gate"] - Q["gate"]), atol=1e-4)

    def read_by_down(p, x):
        h = x * p["gain"][None]
        return jnp.tanh(h @ p["gate"]) * (h @ p["up"])

    inner = qjax.quantized(read_by_down)({n: second[n] for n in ("gain", "gate", "up")}, x)
    now = jnp.mean(qjax.matmul(inner, second["down"]), axis=0)
    true = jnp.mean(read_by_down(SECOND, block(FIRST, X)) @ SECOND["down"], axis=0)
    np.testing.assert_allclose(now, true, atol=1e-3)


def test_tweaked_gains_fold_into_the_norm():
    first, _, report = run(RTN, on(transforms.norm_tweak(steps=20, rate=3e-3), "gate", "up"))
    row = next(r for r in report.rows if r["method"] == "norm_tweak")
    assert row["error_after"] < row["error_before"]
    gain = first["up"].T.scale
    assert jnp.array_equal(gain, first["gate"].T.scale) and isinstance(first["down"], qjax.QArray)
    folded = {**first, "gain": first["gain"] * gain, "gate": first["gate"].op, "up": first["up"].op}
    np.testing.assert_allclose(qjax.quantized(block)(folded, X), qjax.quantized(block)(first, X), rtol=1e-4, atol=1e-4)
    # The loss is the paper's, of a block whose inputs are known.
    off = qjax.quantized(block)(first, BATCHES[0]), qjax.quantized(block)(first, BATCHES[1])
    true = block(FIRST, BATCHES[0]), block(FIRST, BATCHES[1])
    parts = [
        jnp.mean(jnp.abs(a.mean(0) - b.mean(0)) + jnp.abs(a.var(0) - b.var(0))) for a, b in zip(off, true, strict=True)
    ]
    np.testing.assert_allclose(row["error_after"], jnp.mean(jnp.stack(parts)), rtol=1e-3)


def test_outliers_stand_beside_whatever_quantizes_the_rest():
    first, second, report = run(
        on(transforms.outliers(0.05), "0/up", "0/gate"),
        on(qjax.gptq(FMT), "0/up"),
        on(RTN, "0/gate"),
        on(qjax.smooth(), "1/up"),
        on(transforms.outliers(0.05, by="activation", store="float32"), "1/up"),
        on(RTN, "1/up"),
        on(transforms.low_rank(2), "1/up"),
    )
    for name in ("gate", "up"):
        leaf, w = first[name], FIRST[name]
        assert isinstance(leaf, Sum) and isinstance(leaf.ops[1], Sparse) and isinstance(leaf.ops[0], qjax.QArray)
        assert leaf.ops[1].values.shape == (13,) and leaf.ops[1].values.dtype == jnp.float16
        taken = np.zeros((K, K), bool)
        taken[np.asarray(leaf.ops[1].ins), np.asarray(leaf.ops[1].outs)] = True
        np.testing.assert_array_equal(taken, np.abs(np.asarray(w)) >= np.sort(np.abs(np.asarray(w)).ravel())[-13])
        assert output_error(w, qjax.dense(leaf)) < output_error(w, Q[name])
    row = next(r for r in report.rows if r["method"] == "outliers 0.05")
    assert row["bits"] == 13 * (16 + 8 + 8) / K**2
    leaf = second["up"]
    assert isinstance(leaf.op.ops[1], Factored) and isinstance(leaf.op.ops[0].ops[1], Sparse)
    with pytest.raises(ValueError, match="put equivalences before"):
        run(transforms.outliers(0.02), qjax.smooth())


def test_few_values_and_two_widths():
    first, second, _ = run(
        on(transforms.sensitive_clusters("int2", outliers=0.02, by="fisher"), "1/down"),
        on(transforms.gobo(3, threshold=-2.0), "0/down"),
        on(transforms.power(FMT), "0/up"),
        on(transforms.bitstack(2, rank=4), "1/up"),
        on(transforms.mixed_groups("int2_g8_f32", "int4_g8_f32", share=0.5), "0/gate"),
        on(transforms.sensitive_clusters("int2", outliers=0.02), "1/gate"),
        loss=lambda y, x: jnp.sum(jnp.square(y)),
    )
    assert all(len(second[n].ops[1].values) == round(0.02 * K * K) + round(0.0005 * K * K) for n in ("gate", "down"))
    leaf, w = first["down"], FIRST["down"]
    ins, outs = leaf.ops[1].ins, leaf.ops[1].outs
    np.testing.assert_allclose(qjax.dense(leaf)[ins, outs], w[ins, outs], atol=1e-6)
    assert len(np.unique(np.asarray(qjax.dequantize(leaf.ops[0])))) == 8
    np.testing.assert_allclose(first["up"].table, nupes.power(FIRST["up"], FMT, gram=GRAM).q.table, rtol=1e-5)
    leaf, w = second["up"], SECOND["up"]
    assert isinstance(leaf.T, Diag) and len(leaf.op.ops) == 2
    assert float(jnp.linalg.norm(w - qjax.dense(leaf))) < 0.6 * float(jnp.linalg.norm(w))
    leaf, w = first["gate"], FIRST["gate"]
    assert isinstance(leaf, Columns) and evaluate.bpw({"w": leaf}, ["w"]) == (4 + 2) / 2 + 32 / 8 + 32 / K
    high = int(jnp.argmax(mixed_groups.sensitivity(w, 8, GRAM)))
    rows = slice(8 * high, 8 * high + 8)
    np.testing.assert_array_equal(qjax.dense(leaf)[rows], qjax.dequantize(qjax.quantize(w[rows], "int4_g8_f32")))


def test_the_worst_leaves_stay_float():
    keep = transforms.keep_worst(FMT, share=0.34)
    first, second, report = run(keep, masked(RTN, transforms.planned_to_quantize))
    harm = {r["path"]: r["error_before"] for r in report.rows if r["method"].startswith("keep")}
    worst = sorted(harm, key=harm.get)[-2:]
    leaves = {f"layers/{i}/{n}": layer[n] for i, layer in enumerate((first, second)) for n in NAMES}
    assert sorted(worst) == sorted(path for path, leaf in leaves.items() if isinstance(leaf, jax.Array))
    expected = output_error(FIRST["up"], Q["up"]) / output_error(FIRST["up"], 0)
    np.testing.assert_allclose(harm["layers/0/up"], expected, rtol=1e-4)


def test_experts_take_thinner_terms():
    """Of two masks the one that is not named as idle took the leaf."""
    recipe = recipes.milo("int3_g8_affine", rank=4, expert_rank=2)

    def experts(p, x):
        return jnp.einsum("etk,ekn->etn", x, p["w"])

    with pytest.raises(ValueError, match=r"minimum rank 2: matched no leaf"):
        qjax.run(recipe, lambda p, x: x @ p["w"], {"w": FIRST["up"]}, [X], by="w")
    both = jnp.stack([FIRST["gate"], SECOND["gate"]]), jnp.stack([X, X])
    with pytest.raises(ValueError, match=r"minimum rank 4: matched no leaf"):
        qjax.run(recipe, experts, {"w": both[0]}, [both[1]], by="w")


@pytest.mark.parametrize(
    "recipe",
    [
        (transforms.smooth_outliers(2), transforms.aser(FMT, rank=2, outliers=2)),
        (transforms.outliers(0.02), RTN, transforms.low_rank(2, scale="gram"), transforms.bias_correction()),
    ],
    ids=("aser", "split"),
)
def test_stacked_matrices_know_nothing_of_each_other(recipe):
    def experts(p, x):
        return jnp.einsum("etk,ekn->etn", x, p["w"])

    w = jnp.stack([FIRST["up"], SECOND["up"]])
    x = jnp.stack([BATCHES[0], BATCHES[1] * jnp.exp(jnp.linspace(1, -1, K))[None]])
    there, back = (
        qjax.quantized(experts)(qjax.run(qjax.chain(*recipe), experts, {"w": w[o]}, [x[o]], schedule="whole")[0], x[o])
        for o in (jnp.array([0, 1]), jnp.array([1, 0]))
    )
    np.testing.assert_allclose(there, back[::-1], rtol=1e-4, atol=1e-4)
    assert float(jnp.linalg.norm(there - experts({"w": w}, x))) < 0.2 * float(jnp.linalg.norm(there))


@pytest.mark.parametrize(
    ("message", "make"),
    [
        ("rank 0", lambda: transforms.low_rank(0)),
        ("scale 'x'", lambda: transforms.shared_low_rank(2, scale="x")),
        ("0 steps", lambda: transforms.alternate(FMT, 2, steps=0)),
        ("alpha 1", lambda: transforms.aser(FMT, alpha=1.0)),
        ("0 points", lambda: transforms.awq(FMT, points=0)),
        ("alphas", lambda: transforms.smooth_search(FMT, alphas=())),
        ("rate 0", lambda: transforms.learned_scale(FMT, rate=0.0)),
        ("rate 0", lambda: transforms.norm_tweak(rate=0.0)),
        ("share 0", lambda: transforms.outliers(0.0)),
        ("9 bits", lambda: transforms.gobo(9)),
        ("share 1", lambda: transforms.mixed_groups("int2_g8", "int4_g8", share=1.0)),
        ("depth 0", lambda: transforms.bitstack(0)),
        ("neither 'hessian'", lambda: transforms.sensitive_clusters("int2", by="x")),
        ("share 0", lambda: transforms.keep_worst(FMT, share=0.0)),
    ],
)
def test_bad_options_are_refused(message, make):
    with pytest.raises(ValueError, match=message):
        make()
