"""Scores against plain numpy, token by token."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from qjax import evaluate
from tests import draw

VOCAB = 11


def bigram(params, tokens):
    return params["table"][tokens]


@pytest.fixture(scope="module")
def tables():
    table = draw.normal(3, VOCAB, VOCAB, scale=2.0)
    return {"table": table}, {"table": table + draw.normal(4, VOCAB, VOCAB, scale=0.3)}


@pytest.fixture(scope="module")
def batches():
    return list(np.random.default_rng(0).integers(0, VOCAB, (3, 2, 7)).astype(np.int32))


def test_scores_are_the_definitions(tables, batches):
    ours, theirs = tables[1], tables[0]
    scores = evaluate.evaluate(bigram, ours, batches, reference=evaluate.recomputed(bigram, theirs, batches))
    tokens = np.concatenate(batches)
    p = log_softmax(np.asarray(theirs["table"], np.float64)[tokens[:, :-1]], axis=-1)
    q = log_softmax(np.asarray(ours["table"], np.float64)[tokens[:, :-1]], axis=-1)
    loss = -np.take_along_axis(q, tokens[:, 1:, None], -1)[..., 0]
    np.testing.assert_allclose(scores.loss, loss, rtol=1e-5, atol=1e-6)
    kl = (np.exp(p) * (p - q)).sum(-1)
    np.testing.assert_allclose(np.asarray(scores.divergence), kl, rtol=1e-4, atol=1e-6)
    flips = p.argmax(-1) != q.argmax(-1)
    np.testing.assert_array_equal(scores.flips, flips)
    assert scores.perplexity == pytest.approx(np.exp(loss.mean()), rel=1e-5)
    assert scores.kl_mean == pytest.approx(kl.mean(), rel=1e-4)
    assert scores.kl_p99 == pytest.approx(np.quantile(kl, 0.99), rel=1e-4)
    assert scores.top1_flip == flips.mean()
    assert "windows of 7 tokens" in scores.protocol and "the 6 next-token" in scores.protocol


def test_a_model_is_no_distance_from_itself(tables, batches):
    scores = evaluate.evaluate(bigram, tables[0], batches, reference=evaluate.recomputed(bigram, tables[0], batches))
    assert scores.kl_mean == scores.kl_p99 == scores.top1_flip == 0.0


def test_a_token_that_neither_predicts_counts_nothing(tables, batches):
    never = np.r_[np.zeros(VOCAB), -np.inf].astype(np.float32)  # a vocabulary padded with a masked entry
    padded = [{"table": np.pad(t["table"], ((0, 0), (0, 1))) + never} for t in tables]
    plain, masked = (
        evaluate.evaluate(bigram, ours, batches, reference=evaluate.recomputed(bigram, theirs, batches)).kl_mean
        for theirs, ours in (tables, padded)
    )
    assert plain > 0 and masked == pytest.approx(plain, rel=1e-5)


def test_without_a_reference_only_the_loss(tables, batches):
    scores = evaluate.evaluate(bigram, tables[0], batches)
    assert scores.divergence is scores.kl_mean is scores.kl_p99 is scores.top1_flip is None
    with_reference = evaluate.evaluate(
        bigram, tables[0], batches, reference=evaluate.recomputed(bigram, tables[1], batches)
    )
    np.testing.assert_array_equal(scores.loss, with_reference.loss)


def test_batching_changes_nothing(tables, batches):
    whole = [np.concatenate(batches)]
    a = evaluate.evaluate(bigram, tables[0], batches).loss
    np.testing.assert_array_equal(a, evaluate.evaluate(bigram, tables[0], whole).loss)


def test_what_is_remembered_gives_the_same_logits(batches):
    def model(params, tokens):
        x = params["embed"][tokens]
        for layer in params["layers"]:
            x = x + jnp.tanh(x @ layer)
        return x @ params["head"]

    layers = [draw.normal(5, 4, 4), draw.normal(6, 4, 4)]
    params = {"embed": draw.normal(7, VOCAB, 4), "layers": layers, "head": draw.normal(8, 4, VOCAB)}
    kept = evaluate.remembered(model, params, batches)
    again = evaluate.recomputed(model, params, batches)
    for i in range(len(batches)):
        np.testing.assert_allclose(kept(i), again(i), rtol=1e-5, atol=1e-6)


def test_bad_input(tables, batches):
    with pytest.raises(ValueError, match="non-empty sequence"):
        evaluate.evaluate(bigram, tables[0], iter(batches))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="non-empty sequence"):
        evaluate.evaluate(bigram, tables[0], [])
    with pytest.raises(ValueError, match="batch 1 has shape"):
        evaluate.evaluate(bigram, tables[0], [batches[0], batches[1][:, :-1]])
    with pytest.raises(ValueError, match="gave logits"):
        evaluate.evaluate(lambda p, t: jnp.zeros((2, 3, 4)), tables[0], batches)
    with pytest.raises(ValueError, match="not finite at 36 of 36 tokens"):
        evaluate.evaluate(bigram, {"table": tables[0]["table"] * jnp.nan}, batches)
