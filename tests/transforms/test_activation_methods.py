"""Methods that round inputs: each claim on a layer small enough to compute by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax import recipes, transforms
from qjax.operators import Diag, Hadamard, KeepBeyond, KeepLargest, Permute, Quantize, RuntimeSmooth
from qjax.operators.maps.residual_channels import ResidualChannels
from qjax.trace.topology import Norm, Port, Topology
from tests import draw

K, N, T = 64, 8, 48


def linear(p, x):
    return x @ p["w"]


def outlying(channels=(3, 10), by=30.0, seed=0):
    x = np.random.default_rng(seed).normal(size=(T, K)).astype(np.float32)
    x[:, list(channels)] *= by
    return {"w": draw.normal(seed, K, N)}, jnp.asarray(x)


def run(recipe, p, x, fn=linear, **more):
    return qjax.run(recipe, fn, p, [x], schedule="whole", **more)


def error(q, p, x) -> float:
    return float(jnp.linalg.norm(qjax.quantized(linear, strict=True)(q, x) - linear(p, x)))


def smoothed(x, group):
    """Runtime Smooth in numpy, narrow 4-bit tokens."""
    size = np.abs(x).max(0)
    order = np.argsort(-size, kind="stable")
    scale = np.empty_like(size)
    for start in range(0, len(size), group):
        scale[order[start : start + group]] = size[order[start]]
    y = x / scale
    step = np.abs(y).max(1, keepdims=True) / 7
    return np.clip(np.rint(y / step), -7, 7) * step * scale


def test_runtime_smooth_is_the_papers_and_rotation_takes_care_of_spikes():
    x = np.array(outlying()[1], np.float64)
    m = RuntimeSmooth.of("int4_narrow_f32", 16)
    np.testing.assert_allclose(m.apply(jnp.asarray(x, jnp.float32)), smoothed(x, 16), rtol=1e-4, atol=1e-4)
    # So fine that nothing is rounded, it is the identity.
    np.testing.assert_allclose(RuntimeSmooth.of("int16_f32", 16).apply(jnp.asarray(x, jnp.float32)), x, atol=2e-2)

    def apart(map_, x) -> float:
        return float(jnp.linalg.norm(map_.apply(x) - x) / jnp.linalg.norm(x))

    turn = Hadamard(None, K)
    plain, smooth = Quantize.dynamic("int4_narrow_f32"), RuntimeSmooth.of("int4_narrow_f32", 1)
    x32 = jnp.asarray(x, jnp.float32)
    assert apart(smooth, x32) < apart(plain, x32)  # channels with outliers
    spiked = draw.normal(5, T, K).at[7, 20].set(1e3)  # one token with a spike: its channel's other tokens are victims
    others = np.r_[0:7, 8:T]

    def victims(map_, x) -> float:
        return float(jnp.linalg.norm((map_.apply(x) - x)[others]))

    assert victims(smooth, turn.apply(spiked)) < 0.95 * victims(smooth, spiked)
    both = spiked.at[:, [3, 10]].multiply(30.0)
    assert victims(smooth, turn.apply(both)) <= victims(plain, turn.apply(both)) * 1.05


def test_rotated_runtime_smooth_keeps_the_order_of_its_steps():
    p, x = outlying()
    recipe = recipes.rotated_runtime_smooth("int8_f32", "int4_narrow_f32", 16, cache=None, method="rtn", rotated=False)
    q, _ = run(recipe, p, x)
    want = smoothed(np.asarray(x, np.float64), 16) @ np.asarray(qjax.dense(q["w"].op))
    np.testing.assert_allclose(qjax.quantized(linear, strict=True)(q, x), want, rtol=1e-3, atol=1e-2)
    steps = [t.name.split()[0] for t in recipes.rotated_runtime_smooth()]
    assert steps == ["rotate", "gptq", "runtime_smooth", "cache_quantize"]


def test_arcquant_repeats_the_channels_with_outliers():
    p, x = outlying()
    q, report = run(recipes.arcquant("nvfp4"), p, x)
    op = q["w"]
    assert isinstance(op.T, Permute) and isinstance(op.op.T, ResidualChannels) and op.op.T.count == 16
    order = np.asarray(op.T.order)
    assert set(order[-16:]) >= {3, 10} and sorted(order) == list(range(K))
    # The repeated rows are rows of the matrix, code by code, and the matrix is rounded as it would be alone.
    stored = op.op.op
    np.testing.assert_array_equal(np.asarray(qjax.dense(stored))[K:], np.asarray(qjax.dense(stored))[K - 16 : K])
    alone = qjax.dequantize(qjax.quantize(p["w"][order], "nvfp4"))
    np.testing.assert_array_equal(np.asarray(qjax.dense(stored))[:K], alone)
    y = x[:, order]
    once = qjax.fake_quantize(y, "nvfp4", axis=-1)
    twice = once.at[:, K - 16 :].add(qjax.fake_quantize((y - once)[:, K - 16 :], "nvfp4", axis=-1))
    got = qjax.quantized(linear, strict=True)(q, x)
    np.testing.assert_allclose(got, twice @ alone, rtol=1e-4, atol=1e-3)
    # Of what these channels lost, a second rounding leaves a few percent.
    lost = [float(jnp.linalg.norm((v - y)[:, K - 16 :])) for v in (once, twice)]
    assert lost[1] < 0.15 * lost[0]
    plain, _ = run(qjax.chain(qjax.rtn("nvfp4"), qjax.act_quantize("nvfp4")), p, x)
    ideal = x @ qjax.dequantize(qjax.quantize(p["w"], "nvfp4"))
    assert float(jnp.linalg.norm(got - x @ jnp.zeros_like(p["w"]).at[order].set(alone))) < 0.5 * float(
        jnp.linalg.norm(qjax.quantized(linear)(plain, x) - ideal)
    )
    assert report.rows[0]["format"] == "nvfp4, 16 channels twice"
    chosen, report = run(recipes.arcquant("nvfp4", channels=32), p, x)
    assert chosen["w"].op.T.count == 32 and report.rows[0]["format"] == "nvfp4, 32 channels twice"
    none, _ = run(recipes.arcquant("nvfp4", channels=0), p, x)
    np.testing.assert_allclose(qjax.quantized(linear)(none, x), once @ alone, rtol=1e-4, atol=1e-3)


def test_the_largest_of_a_block_pass_and_the_next_sets_the_scale():
    x = np.array(outlying()[1])
    m = KeepLargest.of("int4_g16_narrow_f32", 2)
    want = np.empty((T, K))
    for t in range(T):
        for b in range(0, K, 16):
            part = x[t, b : b + 16].astype(np.float64)
            kept = np.argsort(-np.abs(part))[:2]
            rest = part.copy()
            rest[kept] = 0
            step = np.abs(rest).max() / 7
            part = np.rint(rest / step) * step
            part[kept] = np.asarray(jnp.asarray(x[t, b + kept]).astype(jnp.bfloat16), np.float64)
            want[t, b : b + 16] = part
    np.testing.assert_allclose(m.apply(jnp.asarray(x)), want, rtol=1e-5, atol=1e-5)
    p, x = outlying()
    chosen = {"format": "int8_f32", "activations": ("int4_g16_floor_e8m0",) * 2}
    opal, _ = run(recipes.opal(**chosen, keep=2, wide=("w",)), p, x)
    plain, _ = run(qjax.chain(qjax.rtn("int8_f32"), qjax.act_quantize("int4_g16_floor_e8m0")), p, x)
    assert error(opal, p, x) < 0.6 * error(plain, p, x)


def test_the_largest_of_a_whole_tensor_stays_apart():
    x = np.array(draw.normal(5, 2, 3, K)).astype(np.float32)
    x[1, 2, 4] = 1000.0
    got = np.array(KeepLargest.of("int8_tensor", 1).apply(jnp.asarray(x)))
    rest = x.copy()
    rest[1, 2, 4] = 0
    assert got[1, 2, 4] == 1000.0
    got[1, 2, 4] = 0
    assert 0 < np.abs(got - rest).max() <= np.abs(rest).max() / 127, "steps of the second largest"


def test_what_a_static_range_cuts_off_passes_in_float():
    p, x = outlying()
    q, _ = run(recipes.llm_npu("int8_f32", "int8_tensor_narrow_f32", p=95.0), p, x)
    assert isinstance(q["w"].T, KeepBeyond)
    high = np.quantile(np.abs(np.asarray(x)), 0.95)
    step = float(jax.tree.leaves(q["w"].T.rounding.grid.scales)[0].reshape(()))
    assert step == pytest.approx(high / 127, rel=0.1)
    a = np.asarray(x, np.float64)
    want = np.clip(np.rint(a / step), -127, 127) * step + (a - np.clip(a, -127 * step, 127 * step))
    np.testing.assert_allclose(q["w"].T.apply(x), want, rtol=1e-5, atol=1e-4)
    bare, _ = run(qjax.chain(qjax.rtn("int8_f32"), qjax.act_quantize("int8_tensor_narrow_f32", static=True)), p, x)
    assert error(q, p, x) < 0.7 * error(bare, p, x)


@pytest.mark.parametrize("shift", [False, True])
def test_one_static_scale_for_channels_of_one_range_is_a_scale_for_each(shift):
    p, x = outlying()
    x = x + jnp.where(jnp.arange(K) % 5 == 0, 7.0, 0.0)[None]
    move = transforms.equal_ranges(shift=shift)
    q, _ = run(qjax.chain(move, qjax.act_quantize("int6_tensor_narrow_f32", static=True)), p, x)
    a = np.asarray(x, np.float64)
    z = (a.max(0) + a.min(0)) / 2 if shift else np.zeros(K)
    step = np.abs(a - z).max(0) / 31
    want = (np.rint((a - z) / step) * step + z) @ np.asarray(p["w"], np.float64)
    np.testing.assert_allclose(qjax.quantized(linear, strict=True)(q, x), want, rtol=1e-3, atol=2e-2)
    one, _ = run(qjax.act_quantize("int6_tensor_narrow_f32", static=True), p, x)
    assert error(q, p, x) < 0.5 * error(one, p, x)
    both = recipes.repquant("int8_f32", "int8_tensor_affine_f32", "rtn"), recipes.outliertune("int8_f32")
    for recipe in both if shift else ():
        assert error(run(recipe, p, x)[0], p, x) < error(one, p, x)


def test_shifted_exponents_are_exact_and_help_a_float():
    p, x = outlying(by=8.0)
    q, _ = run(transforms.shift_exponents(2), p, x)
    assert isinstance(q["w"], qjax.operators.Pre) and isinstance(q["w"].T, Diag)
    size = np.abs(np.asarray(x)).max(0)
    power = np.log2(np.asarray(q["w"].T.scale))
    np.testing.assert_array_equal(power, np.clip(np.round(np.log2(size.max() / size)), 0, 3))
    np.testing.assert_array_equal(qjax.quantized(linear, strict=True)(q, x), linear(p, x))
    # Not a bit of a weight in a float format changes but its exponent.
    np.testing.assert_array_equal(q["w"].op * jnp.exp2(jnp.asarray(power))[:, None], p["w"])
    errors = [error(run(recipes.llm_fp4("int8_f32", bits=bits), p, x)[0], p, x) for bits in (2, None)]
    assert errors[0] < 0.8 * errors[1]


def normed(p, x):
    x = x / jnp.sqrt(jnp.mean(x * x, axis=-1, keepdims=True))
    return (x * p["gain"][None]) @ p["w"]


def test_gains_leave_the_norm_and_ranges_give_up_tokens():
    w, x = outlying(channels=())
    p = {**w, "gain": jnp.ones(K).at[5].set(12.0)}
    wiring = Topology(norms=(Norm("gain", (Port("w", -2),)),))
    q, _ = run(transforms.migrate_gains(), p, x, normed, topology=wiring)
    np.testing.assert_array_equal(q["gain"], np.ones(K))
    np.testing.assert_allclose(normed(q, x), normed(p, x), rtol=1e-5, atol=1e-4)
    static = ("int8_f32", "int6_tensor_affine_f32")
    errors = []
    for migrated in (True, False):
        done, _ = run(recipes.outlier_suppression(*static, migrated=migrated), p, x, normed, topology=wiring)
        errors.append(float(jnp.linalg.norm(qjax.quantized(normed)(done, x) - normed(p, x))))
    assert errors[0] < 0.5 * errors[1]


def test_token_clipping_finds_the_share_of_tokens():
    p, x = outlying(channels=())
    x = x.at[jnp.array([4, 9])].multiply(40.0)  # two of 48 tokens
    q, report = run(transforms.token_clip("int4_tensor_affine_f32", step=0.01, most=0.1), p, x)
    grid = q["w"].T.grid
    a, w = np.asarray(x, np.float64), np.asarray(p["w"], np.float64)

    def apart(low, high) -> float:
        step = (high - low) / 15
        zero = np.rint(-low / step)
        rounded = (np.clip(np.rint(a / step) + zero, 0, 15) - zero) * step
        return float(np.sum(((rounded - a) @ w) ** 2))

    coarse = []
    for share in np.arange(11) / 100:
        low, high = -np.quantile(-a.min(1), 1 - share), np.quantile(a.max(1), 1 - share)
        coarse.append((apart(low, high), low, high))
    best = min(coarse)
    fine = min(apart(best[1] * s, best[2] * s) for s in np.linspace(0.7, 1.3, 25))
    assert report.rows[0]["error_before"] == pytest.approx(coarse[0][0], rel=1e-2)
    assert report.rows[0]["error_after"] == pytest.approx(fine, rel=2e-2)
    assert fine < coarse[0][0] and grid is not None


def test_zeroquant_distils_what_rounding_lost():
    p, x = outlying()
    q, report = run(recipes.zeroquant("int3_g16_f32", "int8_f32", steps=60, rate=2e-2), p, x)
    assert isinstance(q["w"].T, Quantize)
    row = report.rows[-1]
    assert row["error_after"] < 0.8 * row["error_before"]
    plain, _ = run(recipes.w8a8("int3_g16_f32"), p, x)
    assert error(q, p, x) < 0.8 * error(plain, p, x)


def test_float_formats_of_zeroquant_fp_and_fp8():
    p, x = outlying()
    q, _ = run(recipes.zeroquant_fp("fp4_e2m1_g32_rceil_e8m0", rank=None), p, x)
    scales = np.asarray(q["w"].op.scales, np.float32)
    largest = np.abs(np.asarray(p["w"])).reshape(2, 32, N).max(1)
    np.testing.assert_array_equal(scales.reshape(2, N), np.exp2(np.ceil(np.log2(largest / 6))))
    # A four-bit float under a power of two is a number of the eight-bit format: the cast is exact.
    codes = np.asarray(qjax.dense(q["w"].op)) / scales.max()
    np.testing.assert_array_equal(np.asarray(jnp.asarray(codes).astype(jnp.float8_e4m3fn), np.float32), codes)
    eight, _ = run(recipes.fp8_bert(), p, x)
    assert error(eight, p, x) < 0.05 * float(jnp.linalg.norm(linear(p, x)))


def test_flexgen_spans_a_group_from_end_to_end():
    p, x = outlying()
    q, _ = run(recipes.flexgen("int4_g16_minimum_f32", cache=None), p, x)
    groups = np.asarray(p["w"], np.float64).reshape(4, 16, N)
    low, high = groups.min(1, keepdims=True), groups.max(1, keepdims=True)
    step = (high - low) / 15
    want = (np.rint((groups - low) / step) * step + low).reshape(K, N)
    np.testing.assert_allclose(qjax.dense(q["w"]), want, atol=1e-4)
    assert [t.name.split()[0] for t in recipes.flexgen()] == ["rtn", "cache_quantize"]


BAD = {
    "one scale a token": lambda: transforms.runtime_smooth("int4_g16"),
    "a share of 0 of": lambda: transforms.residual_channels(share=0),
    "8 channels are no whole blocks of nvfp4": lambda: transforms.residual_channels(channels=8),
    "a share of 0.0 of the outputs": lambda: transforms.output_directed(share=0.0),
    "the 4 upper bits of int4_narrow codes": lambda: run(transforms.output_directed(high=4), *outlying()),
    "scales of int8_tensor span tokens": lambda: transforms.token_adaptive("int4", "int8_tensor"),
    "every token has at least 1": lambda: transforms.token_adaptive(crest=0.5),
    "80 channels twice, but it reads 64": lambda: run(recipes.arcquant(channels=80), *outlying()),
    "not 'network'": lambda: recipes.weights_and_inputs(rotation="network", smoothing=0.5),
    "blocks of 16 do not divide its 10": lambda: run(
        transforms.residual_channels(), {"w": jnp.ones((10, 4))}, jnp.ones((3, 10))
    ),
    "give fewer than a block holds": lambda: KeepLargest.of("int4_g16", 16),
    "'beyond' with static": lambda: transforms.act_quantize("int8", keep="beyond"),
    "0 bits of exponent": lambda: transforms.shift_exponents(0),
    "one scale for the tensor": lambda: transforms.token_clip("int8"),
    "which matrices read a norm": lambda: run(transforms.migrate_gains(), *outlying()),
    "method 'magic' is none of gptaq, gptq, rtn": lambda: recipes.repquant(method="magic"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_rotated_inputs_spread_an_outlier_over_its_block_alone():
    p, x = outlying(channels=(3,))
    turned, _ = run(qjax.rotate_inputs(16), p, x)
    np.testing.assert_allclose(qjax.quantized(linear, strict=True)(turned, x), linear(p, x), rtol=0, atol=2e-4)
    mixed = np.asarray(turned["w"].T.apply(jnp.eye(K)))
    np.testing.assert_allclose(mixed @ mixed.T, np.eye(K), atol=1e-6)
    assert not mixed[3, 16:].any() and (np.abs(mixed[3, :16]) == 0.25).all()
    with pytest.raises(ValueError, match="w reads 64 channels, no multiple of block = 48"):
        run(qjax.rotate_inputs(48), p, x)


def test_inputs_that_are_shared_share_their_rotation():
    def two(p, x):
        return x @ p["q"] + x @ p["k"]

    p, x = {"q": draw.normal(1, K, N), "k": draw.normal(2, K, N)}, outlying()[1]
    turned, _ = run(qjax.rotate_inputs(), p, x, two)
    assert (turned["q"].T.signs == turned["k"].T.signs).all() and turned["q"].T.size == K


def test_tokens_with_outliers_are_rounded_wide():
    p, x = {"w": draw.normal(1, K, N)}, draw.normal(2, 6, K).at[1, 5].set(40.0).at[4, 9].set(-60.0)
    q, report = run(qjax.chain(transforms.token_adaptive("int4", "int8", crest=5.0)), p, x)
    narrow, wide = (qjax.fake_quantize(x, f, axis=-1) for f in ("int4", "int8"))
    want = narrow.at[jnp.array([1, 4])].set(wide[jnp.array([1, 4])])
    np.testing.assert_allclose(qjax.quantized(linear, strict=True)(q, x), want @ p["w"], rtol=1e-5, atol=1e-4)
    assert report.rows[0]["format"] == "input int4, int8 from crest 5"
    assert [t.name.split()[0] for t in recipes.token_adaptive()] == ["rtn", "token_adaptive"]


def test_small_outputs_keep_the_product_of_the_upper_bits():
    p, x = {"w": draw.normal(1, K, N)}, draw.normal(2, 32, K)
    q, report = run(recipes.odq("int4_narrow_f32", "int4_narrow_f32", share=0.25), p, x)
    codes = [qjax.quantize(v, "int4_narrow_f32", axis=a) for v, a in ((x, -1), (p["w"], -2))]
    (a, b), scales = (
        (np.asarray(c.codes, np.int64) for c in codes),
        [np.asarray(c.scales[0], np.float64) for c in codes],
    )
    step = scales[0].reshape(-1, 1) * scales[1].reshape(1, -1)
    whole, upper = (a @ b) * step, (((a >> 2) << 2) @ ((b >> 2) << 2)) * step
    y = np.asarray(qjax.quantized(linear, strict=True)(q, x))
    full = np.abs(upper) >= float(q["w"].threshold)
    np.testing.assert_allclose(y, np.where(full, whole, upper), rtol=1e-4, atol=1e-4)
    assert 0.2 < full.mean() < 0.3 and report.rows[0]["format"].endswith("25% of the outputs in full")
    everything, _ = run(recipes.odq("int4_narrow_f32", "int4_narrow_f32", share=1.0), p, x)
    np.testing.assert_allclose(qjax.quantized(linear)(everything, x), whole, rtol=1e-4, atol=1e-4)
    with pytest.raises(qjax.operators.NotAffine, match="rounds activations"):
        qjax.dense(q["w"])


def test_weights_and_inputs_says_what_is_rounded_and_what_turns():
    steps = [t.name for t in recipes.weights_and_inputs("nvfp4", rotation="blocks", block=16)]
    assert steps == ["rotate inputs 16", "rtn nvfp4", "act_quantize nvfp4"]
    steps = [t.name for t in recipes.weights_and_inputs("int8", rotation="inputs", smoothing=0.5)]
    assert steps == ["smooth 0.5", "rotate inputs whole", "rtn int8", "act_quantize int8"]
    p, x = outlying()
    op = run(recipes.weights_and_inputs("int4_narrow_f32", rotation="inputs"), p, x)[0]["w"]
    assert isinstance(op.T, Hadamard) and isinstance(op.op.T, Quantize) and isinstance(op.op.op, qjax.QArray)
    cut, _ = run(recipes.weights_and_inputs(None, "int8_token", keep=90.0), p, x)
    assert error(cut, p, x) > 10 * error(run(recipes.weights_and_inputs(None, "int8_token"), p, x)[0], p, x)
    with pytest.raises(ValueError, match="format and inputs are both None"):
        recipes.weights_and_inputs(None, None)
    with pytest.raises(ValueError, match="rotation 'network wide'; known: none, blocks"):
        recipes.weights_and_inputs(rotation="network wide")  # type: ignore[arg-type]
