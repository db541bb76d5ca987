"""Verdicts, sign tests, and replicates that stay inside their cells."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from qjax import evaluate
from tests import draw


def test_verdict_is_the_t_interval():
    values = [-0.2, -0.1, -0.15, -0.18]
    found = evaluate.verdict(values)
    low, high = scipy.stats.t.interval(0.95, 3, np.mean(values), scipy.stats.sem(values))
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    assert found.verdict == "reproduced"
    assert evaluate.verdict([-v for v in values]).verdict == "contradicted"
    assert evaluate.verdict([-0.2, 0.3, 0.1]).verdict == "undecided"
    assert evaluate.verdict([-0.2]) == evaluate.Verdict(-0.2, None, None, 1, "undecided")


@pytest.mark.parametrize("bad", [[], [float("nan")], [0.1, float("inf")]])
def test_verdict_refuses(bad):
    with pytest.raises(ValueError, match="finite"):
        evaluate.verdict(bad)


def test_sign_test_counts():
    first, second = {"a": 1.0, "b": 2.0, "c": 0.0}, {"a": 3.0, "b": 1.0, "c": 0.5}
    assert evaluate.sign_test(first, second) == (2, 1, 0, pytest.approx(1.0))
    many = {str(i): 0.0 for i in range(20)}
    assert evaluate.sign_test(many, dict.fromkeys(many, 1.0)).p == pytest.approx(2 * 0.5**20)
    assert evaluate.sign_test(many, many).p == 1.0
    with pytest.raises(ValueError, match="different matrices"):
        evaluate.sign_test({"a": 1.0}, {"b": 1.0})


def test_replicates_move_each_weight_within_a_quarter_of_its_cell():
    params = {"w": draw.normal(0, 64, 5), "norm": jnp.ones(3)}
    cells = {"w": jnp.linspace(0.1, 1.0, 10).reshape(2, 5)}
    width = np.repeat(np.asarray(cells["w"]), 32, axis=0)
    first = evaluate.perturb(params, cells, 0)
    offset = (np.asarray(first["w"]) - np.asarray(params["w"])) / width
    assert 0.2 < np.abs(offset).max() <= 0.25 + 1e-6
    assert abs(offset.mean()) < 0.03
    np.testing.assert_array_equal(first["norm"], params["norm"])
    np.testing.assert_array_equal(first["w"], evaluate.perturb(params, cells, 0)["w"])
    assert (first["w"] != evaluate.perturb(params, cells, 1)["w"]).all()


def test_perturb_refuses():
    params = {"w": jnp.zeros((64, 5))}
    with pytest.raises(KeyError, match="no leaf at 'v'"):
        evaluate.perturb(params, {"v": jnp.ones((2, 5))}, 0)
    with pytest.raises(ValueError, match="w: cells of shape"):
        evaluate.perturb(params, {"w": jnp.ones((3, 5))}, 0)


def test_compare_pairs_methods_on_the_same_weights():
    table = draw.normal(1, 8, 8, scale=2.0)
    params, cells = {"table": table}, {"table": jnp.full((8, 8), 0.1)}
    batches = list(np.random.default_rng(0).integers(0, 8, (2, 2, 9)).astype(np.int32))
    seen = []

    def flatten(factor):
        def method(p, sample, key):
            seen.append((float(p["table"][0, 0]), sample))
            return {"table": p["table"] * factor}

        return method

    def model(p, tokens):
        return p["table"][tokens]

    # A perplexity is the model's own claim on random tokens: less confident is better here.
    found = evaluate.compare(flatten(0.1), flatten(2.0), model, params, cells, lambda r: [r], batches, replicates=3)
    assert found.verdict.verdict == "reproduced" and found.verdict.replicates == 3
    assert [s for _, s in seen] == [[0], [0], [1], [1], [2], [2]]
    assert seen[0][0] == seen[1][0] != seen[2][0] == seen[3][0]
    with pytest.raises(ValueError, match="at least 1"):
        evaluate.compare(flatten(1), flatten(1), model, params, cells, lambda r: [r], batches, replicates=0)
