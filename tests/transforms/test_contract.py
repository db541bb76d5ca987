"""One list of all transforms, and what each must do: the contract."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax import io, recipes, transforms
from qjax.nodes import node
from tests.transforms import toy

RTN = qjax.rtn("int4_g8_f32")
RECIPES = {
    "rtn": RTN,
    "rtn mse": qjax.rtn("int4_g8_f32", range=qjax.ranges.mse()),
    "rtn mxfp4": qjax.rtn("mxfp4"),
    "gptq": qjax.gptq("int4_g8_f32"),
    "gptq act-order": qjax.gptq("int4_g8_f32", order="activation"),
    "gptq fresh": qjax.gptq("nvfp4", groups="fresh"),
    "smooth": qjax.smooth(0.5),
    "rotate_inputs": qjax.rotate_inputs(8),
    "low_rank": qjax.chain(RTN, qjax.low_rank(2)),
    "low_rank scaled": qjax.chain(RTN, qjax.low_rank(2, scale="mean_abs")),
    "act_quantize": qjax.chain(RTN, qjax.act_quantize("int8")),
    "act_quantize static": qjax.chain(RTN, qjax.act_quantize("int8_tensor", static=True)),
    "smooth gptq w8a8": qjax.chain(qjax.smooth(0.5), qjax.gptq("int8"), qjax.act_quantize("int8")),
}
every = pytest.mark.parametrize("name", RECIPES)


def leaves_equal(a, b) -> bool:
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        np.asarray(x).tobytes() == np.asarray(y).tobytes()
        for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    )


@pytest.fixture(scope="module")
def results():
    made = {}

    def get(name):
        """The quantized tree, the report, and how often the Python of the model ran."""
        if name not in made:
            calls = []

            def counted(p, x):
                calls.append(1)
                return toy.model(p, x)

            made[name] = *qjax.run(RECIPES[name], counted, toy.params(), toy.batches()), len(calls)
        return made[name]

    return get


@every
def test_keeps_the_tree_and_runs_where_the_float_model_ran(results, name):
    q, report, _ = results(name)
    p = toy.params()
    is_op = qjax.trace.paths.is_leaf
    assert jax.tree.structure(q, is_leaf=is_op) == jax.tree.structure(p)
    shapes = [leaf.shape for leaf in jax.tree.leaves(q, is_leaf=is_op)]
    assert shapes == [leaf.shape for leaf in jax.tree.leaves(p)]
    assert set(report.targets) == {f"layers/{i}/{n}" for i in range(toy.LAYERS) for n in ("up", "down")}
    x = toy.batches()[0]
    fn = qjax.quantized(toy.model, strict=True)
    y, want = fn(q, x), toy.model(p, x)
    assert float(jnp.linalg.norm(y - want) / jnp.linalg.norm(want)) < 0.35
    np.testing.assert_allclose(jax.jit(fn)(q, x), y, rtol=1e-4, atol=1e-4)
    rows = jax.vmap(lambda row: fn(q, row[None])[0])(x)
    if "tensor" not in str(RECIPES[name]):
        np.testing.assert_allclose(rows, y, rtol=1e-3, atol=1e-3)


@every
def test_survives_save_and_restore(results, name, tmp_path):
    q = results(name)[0]
    io.save(tmp_path / "q", q)
    assert leaves_equal(io.load(tmp_path / "q"), q)


@every
def test_reports_every_target(results, name):
    report = results(name)[1]
    assert {row["path"] for row in report.rows} == set(report.targets)
    assert all(set(row) == set(qjax.transforms.report.COLUMNS) for row in report.rows)
    assert "layers/0/up" in str(report)


@every
def test_compiles_once_for_equal_blocks(results, name):
    """Three equal blocks: no more programs than for one, and none at all the second time."""
    assert results(name)[2] <= 3  # uses and stages trace; nothing runs the Python of the model again


@every
def test_a_second_run_is_equal_and_a_killed_one_is_picked_up(results, name, tmp_path, monkeypatch):
    class Killed(RuntimeError):
        pass

    from qjax.transforms import engine

    edits = []
    original = engine.edit_block

    def dying(working, blocks, at, *rest):
        if len(edits) == 2:
            raise Killed
        edits.append(at)
        return original(working, blocks, at, *rest)

    monkeypatch.setattr(engine, "edit_block", dying)
    folder = str(tmp_path / "progress")
    arguments = (RECIPES[name], toy.model, toy.params(), toy.batches())
    try:
        q, _ = qjax.run(*arguments, checkpoint=folder)
    except Killed:
        monkeypatch.setattr(engine, "edit_block", original)
        q, report = qjax.run(*arguments, checkpoint=folder)
        assert {row["path"] for row in report.rows} == set(report.targets)
    assert leaves_equal(q, results(name)[0])


def test_another_runs_folder_is_refused(tmp_path):
    qjax.run(RTN, toy.model, toy.params(), toy.batches(), checkpoint=str(tmp_path))
    with pytest.raises(ValueError, match="another run"):
        qjax.run(RTN, toy.model, toy.params(1), toy.batches(), checkpoint=str(tmp_path))


@pytest.mark.parametrize("stream", ["quantized", "float"])
@pytest.mark.parametrize("within", ["together", "sequential"])
def test_streams_and_orders_differ_where_they_should(stream, within):
    q, report = qjax.run(qjax.gptq("int2_g8_f32"), toy.model, toy.params(), toy.batches(), stream=stream, within=within)
    plain, _ = qjax.run(qjax.gptq("int2_g8_f32"), toy.model, toy.params(), toy.batches())
    first = leaves_equal(q["layers"]["0"]["up"], plain["layers"]["0"]["up"])
    later = leaves_equal(q["layers"]["2"]["down"], plain["layers"]["2"]["down"])
    assert first
    assert later == ((stream, within) == ("quantized", "together"))
    assert f"{stream} stream, statistics {within}" in report.passes


def test_what_compares_the_streams_is_measured_sequentially_by_default():
    def passes(recipe, **how):
        return str(qjax.plan(recipe, toy.model, toy.params(), toy.batches()[0], **how)).splitlines()

    together, sequential = (f"quantized stream, statistics {name}" for name in ("together", "sequential"))
    for recipe in (recipes.gptaq("int3_g8"), recipes.gpfq("int3_g8"), transforms.mean_shift()):
        assert sequential in passes(recipe)[0]
        assert together in passes(recipe, within="together")[0]
    assert together in passes(qjax.gptq("int3_g8"))[0]
    assert sequential in passes(qjax.gptq("int3_g8"), within="sequential")[0]


def test_data_free_methods_are_bit_equal_whatever_the_walk():
    p, batches = toy.params(), toy.batches()
    recipe = qjax.chain(RTN, qjax.act_quantize("int8"))
    a, _ = qjax.run(recipe, toy.model, p, batches, schedule="whole")
    b, _ = qjax.run(recipe, toy.model, p, batches[:1], schedule="blocks")
    assert leaves_equal(a, b)


def test_whole_and_blocks_agree_on_the_float_stream():
    p, batches = toy.params(), toy.batches()
    recipe = qjax.gptq("int8_g8_f32")
    a, _ = qjax.run(recipe, toy.model, p, batches, schedule="whole")
    b, _ = qjax.run(recipe, toy.model, p, batches, schedule="blocks", stream="float")
    same = [np.mean(np.asarray(x[n].codes) == np.asarray(y[n].codes)) for x, y in zip(
        a["layers"].values(), b["layers"].values(), strict=True) for n in x]  # fmt: skip
    assert min(same) > 0.99  # statistics agree to rounding; a code may sit on a tie


def test_padding_never_counts():
    p, batches = toy.params(), toy.batches()
    padded = [jnp.concatenate([b, 1e3 * jnp.ones_like(b[:6])]) for b in batches]
    weights = [jnp.concatenate([jnp.ones(len(b)), jnp.zeros(6)]) for b in batches]
    a, ra = qjax.run(qjax.gptq("int4_g8_f32"), toy.model, p, padded, weights=weights)
    b, rb = qjax.run(qjax.gptq("int4_g8_f32"), toy.model, p, batches)
    assert [r["tokens"] for r in ra.rows] == [r["tokens"] for r in rb.rows]
    layers = zip(a["layers"].values(), b["layers"].values(), strict=True)
    codes = [np.mean(np.asarray(x["up"].codes) == np.asarray(y["up"].codes)) for x, y in layers]
    assert min(codes) > 0.99


def test_plan_says_what_would_happen():
    plan = qjax.plan(qjax.chain(qjax.smooth(0.5), qjax.gptq("int4_g64")), toy.model, toy.params(), toy.batches()[0])
    text = str(plan)
    assert "pass 1: smooth 0.5 -> gptq int4_g64: block by block ('layers/*')" in text
    assert "measures absmax, gram" in text
    assert len(plan.targets) == 6
    assert "gain  no product with an activation" in text


def test_what_sees_blocks_ahead_begins_a_pass():
    looks = qjax.stateless("looks", "window", lambda stage, key: qjax.Edit(), qjax.Needs(window=2))
    model = qjax.stateless("model", "model", lambda stage, key: qjax.Edit())
    recipe = qjax.chain(qjax.smooth(), looks, RTN, model, model, looks)
    plan = qjax.plan(recipe, toy.model, toy.params(), toy.batches()[0])
    assert [len(p.transforms) for p in plan.passes] == [1, 2, 1, 1, 1]


BAD = [
    (dict(batches=iter([])), TypeError, "list"),
    (dict(batches=[]), ValueError, "one batch"),
    (dict(schedule="all"), ValueError, "blocks, whole"),
    (dict(stream="both"), ValueError, "quantized, float"),
    (dict(within="x"), ValueError, "together, sequential"),
    (dict(where="layers/*/nothing"), ValueError, "layers/\\*/nothing"),
    (dict(by="blocks/*", recipe=qjax.gptq("int4_g8")), ValueError, "blocks/\\*"),
    (dict(weights=[jnp.ones(3)]), ValueError, "1 weights for 3"),
    (dict(recipe=()), ValueError, "empty"),
    (dict(recipe=qjax.rtn), TypeError, "did you forget to call it"),
    (dict(recipe=qjax.chain(RTN, qjax.gptq("int8"))), ValueError, "layers/0/up.*already holds QArray"),
    (dict(recipe=qjax.chain(RTN, qjax.smooth(0.5))), ValueError, "layers/0/up"),
    (dict(recipe=qjax.masked(RTN, lambda path, use, plan: False)), ValueError, "matched no leaf"),
    (dict(recipe=qjax.partition({"a": RTN}, lambda path, use, plan: "b")), ValueError, "label 'b'"),
    (dict(recipe=qjax.chain(qjax.act_quantize(), qjax.act_quantize())), ValueError, "quantized already"),
]


@pytest.mark.parametrize(("change", "error", "match"), BAD)
def test_bad_input_is_refused(change, error, match):
    arguments = dict(recipe=RTN, fn=toy.model, params=toy.params(), batches=toy.batches()) | change
    with pytest.raises(error, match=match):
        qjax.run(**arguments)


BAD_SETTINGS = [
    (lambda: qjax.smooth(2.0), "alpha = 2.0"),
    (lambda: qjax.rtn("int99_g8"), "int99_g8"),
    (lambda: qjax.gptq("int4_g8", order="x"), "order='x'"),
    (lambda: qjax.act_quantize("int8", static=True), "int8_tensor"),
    (lambda: qjax.low_rank(0), "rank 0"),
]


@pytest.mark.parametrize(("make", "match"), BAD_SETTINGS)
def test_bad_settings_are_refused_at_once(make, match):
    with pytest.raises(ValueError, match=match):
        make()


def test_a_false_equivalence_is_caught():
    from qjax.operators import Map
    from qjax.transforms import Edit, stateless

    @node
    class Liar(qjax.operators.Diag):
        def inverse(self) -> Map:
            return qjax.operators.Diag(self.scale)

    lie = stateless(
        "lie",
        "inputs",
        lambda s, k: Edit(equivalence={p: Liar(2 * jnp.ones(s.uses[p].matrix_shape[-2])) for p in s.targets}),
    )
    with pytest.raises(qjax.transforms.NotEquivalent, match="lie"):
        qjax.run(lie, toy.model, toy.params(), toy.batches())
