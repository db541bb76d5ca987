from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax import recipes, transforms
from qjax.metrics import next_token_loss
from qjax.models import Architecture, Decoder, stack_layers
from qjax.transforms.prefix_search import INPUTS
from qjax.transforms.prefixing import frequent

ARCH = Architecture(
    vocab=40, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, ffn=24, learned_positions=True, context=20
)
MODEL = Decoder(ARCH)
START = 1


def tokens(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).integers(2, 40, shape), jnp.int32)


def params():
    """Whatever stands at position 0 has a massive activation before the first down projection, and nothing else has.

    Channel 0 of the stream is the table of positions' alone, which has a 300 at the first of them.
    """
    p = MODEL.init(jax.random.key(0))
    p["embed"] = p["embed"].at[:, 0].set(0.0)
    p["positions"] = (0.1 * p["positions"]).at[:, 0].set(0.0).at[0, 0].set(300.0)
    for layer in p["layers"].values():
        for part, name in (("attn", "o"), ("ffn", "down")):
            layer[part][name] = layer[part][name].at[:, 0].set(0.0)
    ffn = p["layers"]["0"]["ffn"]
    for name in ("gate", "up"):
        ffn[name] = ffn[name].at[0, 5].set(20.0)
    return p


def with_start(batch):
    return jnp.concatenate([jnp.full((len(batch), 1), START), batch], axis=1)


def largest(p, batch):
    seen = qjax.captured(MODEL, "layers/0/ffn/product")(p, batch)[1]["layers/0/ffn/product"]
    return float(jnp.abs(seen).max())


def far(p, q, batch):
    """The greatest relative error of a token's logits, behind the start token and without it."""
    got = qjax.tapped(MODEL)(q, batch)
    want = MODEL(p, with_start(batch))[:, 1:] if "prefix_key" in _leaves(q)["layers"]["0"]["attn"] else MODEL(p, batch)
    return jnp.linalg.norm(got - want, axis=-1) / jnp.linalg.norm(want, axis=-1)


def _leaves(q):
    return q.params if isinstance(q, qjax.Program) else q


@pytest.mark.parametrize(
    "chain",
    [
        transforms.prefix([START]),
        transforms.chain(transforms.rotate(), transforms.prefix([START])),
        transforms.chain(qjax.rtn("int2"), transforms.prefix([START])),
    ],
    ids=["plain", "rotated", "after rounding"],
)
def test_the_prefix_is_the_float_models_tokens(chain):
    """Logits of the float model on prefix and tokens; behind rounded weights, still its keys and values."""
    p, batch = params(), tokens(0, 2, 8)
    q, report = qjax.run(chain, MODEL, p, [batch])
    if "rtn int2" not in {row["method"] for row in report.rows}:
        assert float(far(p, q, batch).max()) < 1e-4
    else:
        _, own = qjax.captured(MODEL, "*/attn/key", "*/attn/value")(p, jnp.array([[START]]))
        for site, value in own.items():
            _, i, _, name = site.split("/")
            np.testing.assert_allclose(q["layers"][i]["attn"][f"prefix_{name}"], value[0], rtol=1e-5, atol=1e-6)
    assert {row["format"] for row in report.rows if "prefix" in row["path"]} == {"tokens 1"}


def test_prefixquant_removes_the_massive_activation_that_static_ranges_fail_on():
    p, batch = params(), tokens(1, 4, 12)
    setting = {"format": "int8_channel", "activations": "int8_tensor", "cache": None, "rotated": False}
    bare, _ = qjax.run(recipes.prefixquant(**setting, prefixed=False), MODEL, p, [batch])
    q, report = qjax.run(recipes.prefixquant(**setting), MODEL, p, [batch])
    assert "tokens 1" in {row["format"] for row in report.rows}  # no other token is one
    assert largest(p, batch) > 1000 and largest(q, batch) < 50
    before, after = (float(jnp.mean(far(p, x, batch)[:, 1:])) for x in (bare, q))
    assert after < 0.2 * before and after < 0.1


@pytest.mark.parametrize(
    ("recipe", "inputs"),
    [(recipes.prefixquant, "input int4_tensor"), (recipes.w4a4, "input int4_affine")],
)
def test_rotations_a_prefix_and_four_bits_everywhere_else(recipe, inputs):
    p, batch = params(), tokens(2, 2, 12)
    program, report = qjax.run(recipe(), MODEL, p, [batch])
    assert list(program.taps) == ["*/attn/query", "*/attn/key", "*/attn/value"]
    assert {inputs, "tokens 1"} <= {row["format"] for row in report.rows}
    assert bool(jnp.isfinite(qjax.tapped(MODEL)(program, batch)).all())


def test_intactkv_keeps_the_float_models_start_and_training_it_lowers_the_blocks_errors():
    p, batch = params(), tokens(3, 4, 8)
    q, report = qjax.run(recipes.intactkv("int2_channel", "rtn", (START,), steps=8), MODEL, p, [batch])
    row = next(row for row in report.rows if row["method"] == "tune_prefix 8 steps")
    assert row["error_after"] < row["error_before"]
    bare, _ = qjax.run(transforms.chain(qjax.rtn("int2_channel"), transforms.prefix([START])), MODEL, p, [batch])
    for i, layer in q["layers"].items():
        assert isinstance(layer["attn"]["q"], qjax.QArray)
        moved = jnp.abs(layer["attn"]["prefix_value"] - bare["layers"][i]["attn"]["prefix_value"])
        assert 0 < float(moved.max()) < 9 * 2e-4  # at most the rate a step


def lost_behind(p, first, window):
    """What INT8 with one scale a tensor loses of everything that matrices read behind a first token."""
    seen = qjax.captured(MODEL, *INPUTS)(p, jnp.concatenate([jnp.full((1, 1), first), window], axis=1))[1]
    values = [x[0, 1:] for x in seen.values()]
    rounded = [qjax.dequantize(qjax.quantize(x, "int8_tensor", axis=-1)) for x in values]
    return sum(float(jnp.mean((x - r) ** 2)) for x, r in zip(values, rounded, strict=True))


def test_cushioncache_finds_a_prefix_and_tunes_it():
    p, batch = params(), tokens(4, 2, 8)
    q, report = qjax.run(
        recipes.cushioncache(candidates=(START, 4, 9), steps=4), MODEL, p, [batch], loss=next_token_loss
    )
    found = next(row["format"] for row in report.rows if row["method"].startswith("search_prefix"))
    errors = {f"tokens {t}": lost_behind(p, t, batch[:1]) for t in (START, 4, 9)}
    assert errors[found] < 1.0001 * min(
        errors.values()
    )  # a second token would not halve it: position 0 is what matters
    row = next(row for row in report.rows if row["method"].startswith("soften_prefix"))
    assert row["error_after"] <= row["error_before"]
    assert largest(p, batch) > 1000 and largest(q, batch) < 50


def test_the_most_frequent_outliers_are_chosen_as_the_authors_do():
    ids = np.array([[9, 4, 5, 4], [9, 5, 4, 6], [9, 4, 4, 4]])
    mask = np.zeros((2, 3, 4), bool)
    mask[0, :, 0] = True  # any token at position 0: counted, never chosen
    mask[0, 0, 1] = mask[0, 0, 2] = mask[0, 1, 2] = True  # 4, 5, 4: the mean of the first layer is 2
    mask[1, 0, 1] = mask[1, 1, 3] = True
    assert frequent(mask, ids) == [4, 5]
    mask[0, 2, 1] = True  # 7/3 outliers a window are rounded up
    assert frequent(mask, ids) == [4, 5, 6]
    rare = np.zeros((1, 11, 2), bool)
    rare[:, :, 0] = rare[0, 0, 1] = True
    assert frequent(rare, np.full((11, 2), 7)) == []  # seen in one window of eleven
    assert frequent(rare[:, :9], np.full((9, 2), 7)) == [7]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p, x: transforms.prefix([]), "no tokens are given"),
        (lambda p, x: qjax.run(transforms.prefix([1], sites=("*/k", "*/v")), MODEL, p, [x]), "names no site"),
        (lambda p, x: qjax.run(qjax.chain(*2 * [transforms.prefix([1])]), MODEL, p, [x]), "has a prefix already"),
        (lambda p, x: qjax.run(transforms.tune_prefix(steps=1), MODEL, p, [x]), "this model has no prefix"),
        (lambda p, x: transforms.search_prefix([]), "no candidates are given"),
        (lambda p, x: qjax.run(transforms.search_prefix([3], threshold=0.0), MODEL, p, [x]), "behind none of 1"),
        (lambda p, x: transforms.tune_prefix(steps=-1), "-1 steps"),
        (lambda p, x: qjax.run(transforms.outlier_prefix(1, 1e6), MODEL, p, [x]), "no token is an outlier"),
        (
            lambda p, x: qjax.run(transforms.prefix([1]), Decoder(ARCH, scan=True), stack_layers(p), [x]),
            "lies in a loop or branch",
        ),
        (
            lambda p, x: qjax.run(transforms.prefix([1]), lambda p, y: MODEL(p, x) * y[0, 0], p, [jnp.ones((1, 2))]),
            "the calibration batches are none",
        ),
    ],
)
def test_bad_input(make, message):
    with pytest.raises(ValueError, match=message):
        make(params(), tokens(0, 1, 4))
