"""What a network leans on: weights or features removed, massive activations pinned."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.ad_checkpoint import checkpoint_name

import qjax
from qjax import transforms
from tests import draw

K, N = 16, 8


def two(p, x):
    return x @ p["a"] + x @ p["b"]


def planted():
    """Weights whose largest magnitude is b[1, 1] and whose largest product with an input is a[5, 2]."""
    p = {"a": draw.normal(1, K, N, scale=0.1), "b": draw.normal(2, K, N, scale=0.1)}
    p["a"], p["b"] = p["a"].at[5, 2].set(1.0), p["b"].at[1, 1].set(3.0)
    return p, draw.normal(3, 32, K).at[:, 5].multiply(100.0)


@pytest.mark.parametrize(
    ("options", "gone"),
    [
        ({"count": 1}, {("a", 5, 2)}),
        ({"count": 1, "by": "magnitude"}, {("b", 1, 1)}),
        ({"count": 2, "by": "magnitude"}, {("b", 1, 1), ("a", 5, 2)}),
    ],
)
def test_the_largest_weights_of_all_targets_are_removed(options, gone):
    p, x = planted()
    q, _ = qjax.run(transforms.zero_weights(**options), two, p, [x], schedule="whole")
    zeros = {(name, *map(int, place)) for name in p for place in np.argwhere(np.asarray(q[name]) == 0)}
    assert zeros == gone


def test_the_largest_products_can_be_left_alone_and_random_weights_follow_the_key():
    p, x = planted()
    q, report = qjax.run(transforms.zero_weights(40, by="magnitude", skip=3), two, p, [x], schedule="whole")
    assert q["a"][5, 2] == 1.0 and sum(int((leaf == 0).sum()) for leaf in q.values()) == 40
    assert sorted(row["format"].split()[1] for row in report.rows) == ["zeroed", "zeroed"]
    again = [qjax.run(transforms.zero_weights(5, by="random"), two, p, [x], schedule="whole")[0] for _ in range(2)]
    assert all((again[0][name] == again[1][name]).all() for name in p)
    with pytest.raises(ValueError, match="300 and 0 of 256 weights"):
        qjax.run(transforms.zero_weights(300), two, p, [x], schedule="whole")
    with pytest.raises(ValueError, match="count=0"):
        transforms.zero_weights(0)


def test_a_super_weight_stays_in_float_and_sets_no_scale():
    p, x = planted()
    q, report = qjax.run(
        transforms.keep_super_weights("int4_channel", deviations=2.0, among="a"), two, p, [x], schedule="whole"
    )
    a, b = (np.asarray(qjax.dense(q[name]), np.float32) for name in "ab")
    assert a[5, 2] == p["a"][5, 2], "the super weight, whatever was cut"
    assert b[1, 1] < 2.5 * np.std(np.asarray(p["b"])) + abs(np.mean(np.asarray(p["b"])))
    # Its column is rounded on the scale of the others: a tenth of what the weight itself would ask for.
    rest = np.delete(np.abs(a[:, 2] - np.asarray(p["a"][:, 2])), 5)
    assert rest.max() < 0.5 * 1.0 / 7 / 2
    assert sorted(row["format"] for row in report.rows) == ["int4", "int4, 1 apart"]
    with pytest.raises(ValueError, match="none of a, b matches among='c'"):
        qjax.run(transforms.keep_super_weights("int4", among="c"), two, p, [x], schedule="whole")
    with pytest.raises(ValueError, match="deviations=0"):
        transforms.keep_super_weights("int4", deviations=0)


def sited(p, x):
    for i in "01":
        x = checkpoint_name(x + jnp.tanh(x @ p["layers"][i]["w"]), f"layers/{i}/residual")
    return x


def test_massive_activations_are_pinned_where_they_first_appear():
    p = {"layers": {i: {"w": draw.normal(int(i), K, K, scale=0.1)} for i in "01"}}
    x = draw.normal(5, 4, K).at[0, 3].set(500.0).at[1, 3].set(700.0)
    program, _ = qjax.run(transforms.pin_massive("mean", magnitude=100.0, site="layers/*/residual"), sited, p, [x])
    ((site, tap),) = program.taps.items()
    behind = np.asarray(x + jnp.tanh(x @ p["layers"]["0"]["w"]))
    assert site == "layers/0/residual"
    np.testing.assert_allclose(tap.values[3], behind[:2, 3].mean(), rtol=1e-6)
    assert np.isnan(np.delete(np.asarray(tap.values), 3)).all()
    zero, _ = qjax.run(transforms.pin_massive("zero", magnitude=100.0, site="layers/*/residual"), sited, p, [x])
    y = np.asarray(qjax.tapped(sited)(zero, x))
    pinned = np.where(np.abs(behind) >= 100, 0.0, behind)
    np.testing.assert_allclose(y, pinned + np.tanh(pinned @ np.asarray(p["layers"]["1"]["w"])), rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="below magnitude = 1000"):
        qjax.run(transforms.pin_massive(site="layers/*/residual"), sited, p, [x])
    with pytest.raises(ValueError, match="fill='median'"):
        transforms.pin_massive("median")  # type: ignore[arg-type]


def test_outlier_features_are_zeroed_in_every_layer_and_random_ones_follow_the_key():
    p = {"layers": {i: {"w": draw.normal(int(i), K, K, scale=0.1)} for i in "01"}}
    x = draw.normal(5, 8, K).at[:, 3].set(20.0).at[:6, 9].set(-30.0).at[0, 1].set(90.0)
    options = {"count": 2, "site": "layers/*/residual"}
    program, _ = qjax.run(transforms.zero_features(**options), sited, p, [x], schedule="whole")
    y = np.asarray(qjax.tapped(sited)(program, x))
    assert (np.flatnonzero((y == 0).all(axis=0)) == [3, 9]).all(), "those with most large values, not the largest one"
    chance = transforms.zero_features(by="random", **options)
    drawn = [qjax.run(chance, sited, p, [x], key=jax.random.key(k), schedule="whole")[0] for k in (1, 1, 2)]
    gone = [np.flatnonzero(np.asarray(next(iter(program.taps.values())).scale) == 0).tolist() for program in drawn]
    assert gone[0] == gone[1] != gone[2] and len(gone[0]) == 2
    with pytest.raises(ValueError, match="3 channels at 'layers/\\*/residual' reach 6"):
        qjax.run(transforms.zero_features(4, site=options["site"]), sited, p, [x], schedule="whole")
    with pytest.raises(ValueError, match="by='largest'"):
        transforms.zero_features(by="largest")  # type: ignore[arg-type]
