"""The eleven kinds of method the contract must carry, each as a toy (design: a method is a transform over targets)."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import qjax
from qjax.operators import Orthogonal, Pre
from qjax.operators.latent import harden, straight_through
from qjax.reconstruct import minimize
from qjax.transforms import Edit, Needs, Transform, stateless
from qjax.transforms.leaves import Core, float_core
from tests.transforms import toy

TARGETS = [f"layers/{i}/{name}" for i in range(toy.LAYERS) for name in ("up", "down")]


def recorder(scope, needs, seen, edit=None):
    """A transform that notes every stage it is given, and edits as told."""

    def step(stage, key):
        seen.append(stage)
        return Edit(rows={p: {} for p in stage.targets}) if edit is None else edit(stage, key)

    return stateless("recorder", scope, step, needs)


def error(p, q) -> float:
    fn = qjax.quantized(toy.model)
    return float(sum(jnp.sum((fn(q, x) - toy.model(p, x)) ** 2) for x in toy.batches()))


def rounded(leaf):
    return qjax.dequantize(leaf) if isinstance(leaf, qjax.QArray) else leaf


def dense_tree(q):
    return jax.tree.map(rounded, q, is_leaf=lambda n: isinstance(n, qjax.QArray))


def test_gptq_leaf_sees_the_quantized_stream():
    p, batches, seen = toy.params(), toy.batches(), []
    watch = recorder("leaf", Needs(statistics=("gram",)), seen)
    recipe = qjax.chain(watch, qjax.gptq("int3_g8_f32"))
    q, report = qjax.run(recipe, toy.model, p, batches)
    assert [s.targets for s in seen] == [(t,) for t in TARGETS]
    done = dense_tree(q)
    for stage in seen:
        layer, name = int(stage.name.split("/")[1]), stage.name.split("/")[2]
        now = {**done, "layers": {**done["layers"], str(layer): p["layers"][str(layer)]}}
        x = jnp.concatenate([toy.inputs_of(now, layer, b)[name == "down"] for b in batches])
        np.testing.assert_allclose(stage.statistics[stage.targets[0]]["gram"], x.T @ x, rtol=2e-5, atol=1e-4)
    assert error(p, q) < error(p, qjax.run(qjax.rtn("int3_g8_f32"), toy.model, p, batches)[0])
    assert all(row["tokens"] == 3 * toy.TOKENS for row in report.rows)


def test_gptaq_leaf_sees_both_streams():
    p, batches, seen = toy.params(), toy.batches(), []
    recipe = qjax.chain(recorder("leaf", Needs(statistics=("gram", "cross_gram")), seen), qjax.rtn("int2_g8_f32"))
    q, _ = qjax.run(recipe, toy.model, p, batches)
    stage = next(s for s in seen if s.name == "layers/2/up")
    done = dense_tree(q)
    pairs = [(toy.inputs_of(done, 2, b)[0], toy.inputs_of(p, 2, b)[0]) for b in batches]
    want = sum(a.T @ b for a, b in pairs)
    np.testing.assert_allclose(stage.statistics["layers/2/up"]["cross_gram"], want, rtol=2e-5, atol=1e-3)
    assert not np.allclose(want, stage.statistics["layers/2/up"]["gram"], rtol=1e-2)


def test_smooth_inputs_equivalence():
    p, batches = toy.params(), toy.batches()
    q, _ = qjax.run(qjax.smooth(alpha=0.5), toy.model, p, batches)
    for x in batches:
        np.testing.assert_allclose(qjax.quantized(toy.model)(q, x), toy.model(p, x), rtol=1e-4, atol=1e-5)
    x = jnp.abs(jnp.concatenate(batches)).max(0)
    w = jnp.abs(p["layers"]["0"]["up"]).max(1)
    np.testing.assert_allclose(1 / q["layers"]["0"]["up"].T.scale, jnp.sqrt(x / w), rtol=1e-5)


def test_rotation_model_equivalence():
    p, batches = toy.params(), toy.batches()

    def edit(stage, key):
        found = {}
        for path in stage.targets:
            width = stage.uses[path].matrix_shape[-2]
            found[path] = Orthogonal.random(key, width)
        return Edit(equivalence=found)

    q, _ = qjax.run(stateless("rotate", "model", edit), toy.model, p, batches)
    np.testing.assert_allclose(qjax.quantized(toy.model)(q, batches[0]), toy.model(p, batches[0]), rtol=1e-3, atol=1e-4)
    assert float(jnp.abs(q["layers"]["1"]["up"].op - p["layers"]["1"]["up"]).max()) > 0.1


def test_rotation_chosen_by_loss():
    """SpinQuant's shape: an equivalence on all leaves, chosen by a loss of the whole model after rounding."""
    p, batches = toy.params(), toy.batches()
    pairs = [(x, toy.model(p, x)) for x in batches]
    # A narrow range: no block has its largest value on a tie, which an ulp of the rotation would decide.
    fmt, losses = "int3_narrow_g8_f32", {}

    def rotations(stage, seed):
        keys = jax.random.split(jax.random.key(seed), len(stage.targets))
        return {
            t: Orthogonal.random(k, stage.uses[t].matrix_shape[-2]) for t, k in zip(stage.targets, keys, strict=True)
        }

    def edit(stage, key):
        for seed in range(4):
            leaves = dict(stage.params)
            for path, m in rotations(stage, seed).items():
                leaves[path] = Pre(m, qjax.quantize(Pre(m.inverse(), leaves[path]).affine()[0], fmt))
            losses[seed] = float(sum(stage.loss(tuple(leaves.values()), pair) for pair in stage.inputs))
        return Edit(equivalence=rotations(stage, min(losses, key=losses.get)))

    def on_pairs(p, pair):
        return toy.model(p, pair[0])

    def loss(y, pair):
        return jnp.sum((y - pair[1]) ** 2)

    t = stateless("spin", "model", edit, Needs(loss=True))
    with pytest.raises(ValueError, match="needs a loss"):
        qjax.run(t, on_pairs, p, pairs)
    q, _ = qjax.run(qjax.chain(t, qjax.rtn(fmt)), on_pairs, p, pairs, loss=loss)
    assert isinstance(q["layers"]["0"]["up"].op, qjax.QArray)
    assert len(set(losses.values())) == 4
    np.testing.assert_allclose(error(p, q), min(losses.values()), rtol=1e-4)


def _clipped_error(fn, variables, constants, item, progress):
    x, want = item
    leaves = tuple(
        leaf if v is None else qjax.fake_quantize(leaf * v, "int3_g8_f32") / v
        for leaf, v in zip(constants, [variables.get(str(i)) for i in range(len(constants))], strict=True)
    )
    # A block's output is its carry: here one array.
    ((y,), (wanted,)) = fn(leaves, x), want
    return jnp.mean((y - wanted) ** 2)


def reconstruct(scope, window, calls):
    """OmniQuant's and CBQ's shape: scales in front of the rounding, learned against the float output of the stage."""

    def edit(stage, key):
        calls.append((stage.name, stage.fn))
        order = list(stage.params)
        start = {str(order.index(p)): jnp.ones((1, 1)) for p in stage.targets}
        items = list(zip(stage.inputs, stage.reference_outputs, strict=True))
        found = minimize(
            _clipped_error, stage.fn, start, tuple(stage.params.values()), items,
            optimizer=optax.adam(0.02), steps=10, key=key,
        )  # fmt: skip
        assert float(found.loss) <= float(found.before)
        new = {}
        for path in stage.targets:
            v = found.variables[str(order.index(path))]
            core, w = float_core(path, stage.params[path], stage.uses[path])
            new[path] = core.holding(qjax.fake_quantize(w * v, "int3_g8_f32") / v).leaf()
        return Edit(params=new)

    return stateless("reconstruct", scope, edit, Needs(streams=True, window=window))


def test_omniquant_block():
    p, batches, calls = toy.params(), toy.batches(), []
    q, report = qjax.run(reconstruct("block", 1, calls), toy.model, p, batches)
    assert [name for name, _ in calls] == ["layers/0", "layers/1", "layers/2"]
    assert len({id(fn) for _, fn in calls}) == 1  # equal blocks share one function, so one compilation
    assert error(p, q) > 0
    assert {r["path"] for r in report.rows} == set(TARGETS)


def test_cbq_window():
    p, batches, calls = toy.params(), toy.batches(), []
    qjax.run(reconstruct("window", 2, calls), toy.model, p, batches)
    assert [name for name, _ in calls] == ["layers/0..layers/1", "layers/1..layers/2"]


def test_bit_budget_annotates_then_partition_reads_the_plan():
    p, batches = toy.params(), toy.batches()

    def edit(stage, key):
        size = {t: float(jnp.abs(jnp.asarray(stage.params[t])).max()) for t in stage.targets}
        middle = sorted(size.values())[len(size) // 2]
        return Edit(plan={t: "int8" if v >= middle else "int4_g8_f32" for t, v in size.items()})

    budget = stateless("budget", "model", edit)
    follow = qjax.partition(
        {"int8": qjax.rtn("int8"), "int4_g8_f32": qjax.rtn("int4_g8_f32")}, lambda path, use, plan: plan[path]
    )
    q, report = qjax.run(qjax.chain(budget, follow), toy.model, p, batches)
    assert set(report.plan) == set(TARGETS)
    assert {r["path"]: r["format"] for r in report.rows} == dict(report.plan)
    assert {r["format"] for r in report.rows} == {"int8", "int4_g8_f32"}
    del q


def test_low_rank_behind_gptq():
    p, batches = toy.params(), toy.batches()
    plain, _ = qjax.run(qjax.gptq("int2_g8_f32"), toy.model, p, batches, stream="float")
    repaired, report = qjax.run(
        qjax.chain(qjax.gptq("int2_g8_f32"), qjax.low_rank(4, scale="mean_abs")), toy.model, p, batches, stream="float"
    )
    assert error(p, repaired) < 0.8 * error(p, plain)
    first, second = plain["layers"]["0"]["up"], repaired["layers"]["0"]["up"]
    np.testing.assert_array_equal(qjax.dequantize(first), qjax.dequantize(second.ops[0]))
    assert [r["method"] for r in report.rows[:4]] == ["gptq int2_g8_f32"] * 2 + ["low_rank 4 scaled"] * 2


def test_a_leaf_is_added_that_the_model_reads_and_no_other():
    def model(p, x):
        return toy.model(p, x) + p["layers"]["0"].get("more", jnp.float32(0))

    p, batches = toy.params(), toy.batches()
    put = stateless("put", "model", lambda stage, key: Edit(added={"layers/0/more": jnp.float32(3)}))
    q, _ = qjax.run(qjax.chain(put, qjax.rtn("int8")), model, p, batches)
    assert isinstance(q["layers"]["0"]["up"], qjax.QArray)
    plain, _ = qjax.run(qjax.rtn("int8"), toy.model, p, batches)
    run = qjax.quantized(model)
    np.testing.assert_allclose(run(q, batches[0]), qjax.quantized(toy.model)(plain, batches[0]) + 3, rtol=1e-5)
    with pytest.raises(ValueError, match="layers/0/more: this function does not read such a leaf"):
        qjax.run(put, toy.model, p, batches)
    lost = stateless("put", "model", lambda stage, key: Edit(added={"layers/7/more": jnp.float32(3)}))
    with pytest.raises(ValueError, match="'layers/7/more' cannot be added: there is no dict at '7'"):
        qjax.run(lost, model, p, batches)


def test_qat_latent_and_optax():
    p, batches = toy.params(), toy.batches()
    wanted = [toy.model(p, x) for x in batches]

    def init(stage):
        cores = {t: Core.of(stage.params[t], stage.uses[t]) for t in stage.targets}
        return {t: straight_through(c.matrix, "int3_g8_f32") for t, c in cores.items()}

    def step(stage, latents, key):
        def loss(train, frozen, x, y):
            merged = qjax.merge(train, frozen)
            leaves = [merged.get(t, leaf) for t, leaf in stage.params.items()]
            return jnp.mean((stage.fn(tuple(leaves), x) - y) ** 2)

        train, frozen = qjax.trainable(latents, where="latent")
        optimizer = optax.adam(optax.cosine_decay_schedule(1e-2, 60))
        state = optimizer.init(train)
        first = last = None
        for _ in range(20):
            for x, y in zip(batches, wanted, strict=True):
                last, gradient = jax.value_and_grad(loss)(train, frozen, x, y)
                first = last if first is None else first
                with jax.numpy_dtype_promotion("standard"):  # optax's own arithmetic
                    updates, state = optimizer.update(gradient, state)
                train = optax.apply_updates(train, updates)
        assert last < 0.7 * first
        latents = qjax.merge(train, frozen)
        hard = {t: stage.uses[t].from_matrix(q) for t, q in harden(latents).items()}
        return Edit(params=hard), latents, True

    qat = Transform("qat", "model", Needs(), init, step)
    q, _ = qjax.run(qat, toy.model, p, batches)
    rtn, _ = qjax.run(qjax.rtn("int3_g8_f32"), toy.model, p, batches)
    assert error(p, q) < 0.7 * error(p, rtn)
