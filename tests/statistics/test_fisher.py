"""The Fisher diagonal against a loop over examples."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax.statistics import fisher
from tests import draw


def loss(params, batch):
    return ((jnp.tanh(batch["x"] @ params["w"]) - batch["y"]) ** 2).mean()


PARAMS = {"w": draw.normal(0, 3, 2)}
BATCHES = [{"x": draw.normal(i, 4, 3), "y": draw.normal(i + 2, 4, 2)} for i in (1, 2)]


def test_per_example_is_a_loop_and_batches_can_be_split():
    got = fisher(loss, PARAMS, BATCHES)["w"]
    squares = [
        jax.grad(loss)(PARAMS, {n: v[i : i + 1] for n, v in b.items()})["w"] ** 2 for b in BATCHES for i in range(4)
    ]
    np.testing.assert_allclose(got, np.mean(squares, axis=0), rtol=1e-5)
    small = [{n: v[i : i + 2] for n, v in b.items()} for b in BATCHES for i in (0, 2)]
    np.testing.assert_allclose(fisher(loss, PARAMS, small)["w"], got, rtol=1e-5)


def test_per_batch():
    want = np.mean([jax.grad(loss)(PARAMS, b)["w"] ** 2 for b in BATCHES], axis=0)
    np.testing.assert_allclose(fisher(loss, PARAMS, BATCHES, per_example=False)["w"], want, rtol=1e-5)


def test_bad_input():
    with pytest.raises(TypeError, match="Sequence"):
        fisher(loss, PARAMS, iter(BATCHES))  # pyright: ignore[reportArgumentType]
    with pytest.raises(TypeError, match="w has dtype int8"):
        fisher(loss, {"w": jnp.zeros((3, 2), jnp.int8)}, BATCHES)
    with pytest.raises(ValueError, match="empty"):
        fisher(loss, PARAMS, [])
