"""A solver of one matrix on the leaves of a model: batch axes, maps in front, statistics by name, keys, the report."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import qjax
from qjax.operators import Diag, Factored
from qjax.transforms import Edit, correct_with, quantize_with, stateless
from tests import draw

E, K, N = 2, 8, 6


def experts(p, x):
    return jnp.einsum("etk,ekn->etn", x, p["w"])


def data():
    return {"w": draw.normal(0, E, K, N)}, [draw.normal(1, E, 32, K)]


def noisy(w, gram, absmax, fmt, key, size):
    """Each argument of a solver leaves its trace in the result."""
    return qjax.quantize(w + size * jax.random.normal(key, w.shape) + jnp.trace(gram) / 100 + absmax[:, None], fmt)


def test_a_solver_sees_each_matrix_with_its_statistics_and_a_key_of_its_own():
    p, batches = data()
    # A map in front: the solver works in the coordinates behind it.
    scale = jnp.linspace(0.5, 2.0, K)
    front = stateless("front", "inputs", lambda stage, key: Edit(equivalence={"w": Diag(scale)}))
    method = quantize_with(noisy, "int8", statistics=("gram", "absmax"), random=True, size=0.5)
    q, report = qjax.run(qjax.chain(front, method), experts, p, batches, schedule="whole")
    moved, x = p["w"] / scale[None, :, None], batches[0] * scale[None, None]
    noise = qjax.dequantize(q["w"].op) - moved
    noise -= jnp.einsum("etk,etk->e", x, x)[:, None, None] / 100 + jnp.abs(x).max(1)[:, :, None]
    assert 0.3 < float(jnp.std(noise)) / 0.5 < 1.7 and not np.allclose(noise[0], noise[1], atol=0.1)
    row = report.rows[-1]
    wrong = qjax.dequantize(q["w"].op) - moved
    want = jnp.sqrt(jnp.sum(jnp.einsum("etk,ekn->etn", x, wrong) ** 2) / jnp.sum(experts(p, batches[0]) ** 2))
    np.testing.assert_allclose(row["error_after"], want, rtol=1e-4)
    assert row["format"] == "int8" and row["bits"] == 8 + 16 / K and row["tokens"] == [32, 32]
    assert row["error_before"] < 0.02 < 0.3 < row["error_after"]


def constant(w, now, rank):
    return Factored(jnp.ones((w.shape[0], rank)), jnp.mean(w - now, axis=0)[None] / rank * jnp.ones((rank, 1)))


def test_a_correction_is_added_to_what_the_leaf_holds():
    p, batches = data()
    q, report = qjax.run(
        qjax.chain(qjax.rtn("int2"), correct_with(constant, "mean", rank=2)), experts, p, batches, schedule="whole"
    )
    base = qjax.dequantize(q["w"].ops[0])
    np.testing.assert_allclose(qjax.dense(q["w"]), base + jnp.mean(p["w"] - base, axis=1, keepdims=True), atol=1e-5)
    row = report.rows[-1]
    size = jnp.linalg.norm(p["w"])
    np.testing.assert_allclose(row["error_before"], jnp.linalg.norm(p["w"] - base) / size, rtol=1e-5)
    np.testing.assert_allclose(row["error_after"], jnp.linalg.norm(p["w"] - qjax.dense(q["w"])) / size, rtol=1e-5)
    # The two factors are stored in float32 beside codes and a scale a channel.
    np.testing.assert_allclose(row["bits"], 2 + 16 / K + 32 * 2 * (K + N) / (K * N))
