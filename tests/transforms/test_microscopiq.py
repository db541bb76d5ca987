"""MicroScopiQ: the sweep against an account of it row by row, what is pruned for whom, and what it is good for."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax import recipes, transforms
from qjax.operators import Sparse, Sum
from qjax.solvers import gptq
from qjax.solvers import pruned_for_outliers as solver
from tests import draw

K, N, T = 32, 5, 80
INLIERS, OUTLIERS = "int3_g16_floor_e8m0", "int6_g8_floor_e8m0"


def subject():
    w = np.random.default_rng(0).normal(size=(K, N))
    w[[3, 9, 20, 22], [0, 1, 1, 4]] = [9.0, -12.0, 15.0, 8.0]
    x = np.random.default_rng(1).normal(size=(T, K)) @ (np.eye(K) + 0.3 * np.random.default_rng(2).normal(size=(K, K)))
    return w, x


def step(v, bits):
    """The power of two of the largest of v, the exponent of the integers' largest power of two taken off."""
    return 2.0 ** (np.floor(np.log2(np.abs(v).max())) - (bits - 2))


def rounded(v, s, bits):
    return np.clip(np.rint(v / s), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) * s


def by_hand(w, x, deviations):
    """GPTQ's rows, each weight by its role; column by column."""
    h = x.T @ x
    h = h + 0.01 * np.mean(np.diag(h)) * np.eye(K)
    u = np.linalg.cholesky(np.linalg.inv(h)).T
    w, roles, out = w.copy(), np.zeros((K, N), int), np.zeros((K, N))
    for c in range(N):
        for i in range(K):
            if i % 16 == 0:
                own = w[i : i + 16, c]
                far = np.abs(own - own.mean()) > deviations * own.std()
                for m in range(0, 16, 8):
                    found = sorted((j for j in range(m, m + 8) if far[j]), key=lambda j: -abs(own[j]))[:4]
                    rest = sorted(
                        (j for j in range(m, m + 8) if j not in found), key=lambda j: abs(own[j] / u[i + j, i + j])
                    )
                    roles[i + np.array(found, int), c], roles[i + np.array(rest[: len(found)], int), c] = 1, 2
                kind = roles[i : i + 16, c]
                inliers = step(own[kind == 0], 3)
                wide = [step(v, 6) if (v := own[m : m + 8][kind[m : m + 8] == 1]).size else 1.0 for m in (0, 8)]
            role = roles[i, c]
            value = 0.0 if role == 2 else rounded(w[i, c], *((wide[i % 16 // 8], 6) if role else (inliers, 3)))
            out[i, c] = value
            w[i:, c] -= u[i, i:] * (w[i, c] - value) / u[i, i]
    return out, roles


def test_the_sweep_is_gptqs_with_roles():
    w, x = subject()
    want, roles = by_hand(w, x, 2.5)
    factored = gptq.factor(jnp.asarray(x.T @ x, jnp.float32), 0.01)
    q, far, kinds = solver.prune_for_outliers(
        jnp.asarray(w, jnp.float32),
        factored,
        fmt=qjax.as_format(INLIERS),
        wide=qjax.as_format(OUTLIERS),
        deviations=2.5,
    )
    np.testing.assert_array_equal(kinds, roles)
    np.testing.assert_allclose(qjax.dequantize(q) + far, want, atol=1e-5)
    by_micro = np.asarray(kinds).reshape(K // 8, 8, N)
    assert (by_micro == 1).sum() >= 4
    np.testing.assert_array_equal((by_micro == 1).sum(1), (by_micro == 2).sum(1))


def test_more_outliers_than_half_a_micro_block_are_not_kept():
    w = draw.normal(0, 64, 1).at[:7, 0].set(50.0 + jnp.arange(7.0))
    kinds = np.asarray(solver.roles(w, jnp.ones(64), 8, 2.0))[:, 0]
    assert kinds[:8].tolist() == [2, 2, 2, 1, 1, 1, 1, 2] and not kinds[8:].any()


def linear(p, x):
    return x @ p["w"]


def test_it_errs_less_than_gptq_in_the_same_blocks():
    w, x = subject()
    p, x = {"w": jnp.asarray(w, jnp.float32)}, jnp.asarray(x, jnp.float32)
    errors = []
    recipe = recipes.microscopiq(INLIERS, OUTLIERS, deviations=2.5)
    for each in (recipe, qjax.gptq(INLIERS)):
        q, report = qjax.run(each, linear, p, [x], schedule="whole")
        errors.append(float(jnp.linalg.norm(qjax.quantized(linear, strict=True)(q, x) - linear(p, x))))
        np.testing.assert_allclose(
            report.rows[0]["error_after"], errors[-1] / float(jnp.linalg.norm(linear(p, x))), rtol=1e-3
        )
    assert errors[0] < 0.6 * errors[1]
    q, report = qjax.run(recipe, linear, p, [x], schedule="whole")
    op = q["w"]
    assert isinstance(op, Sum) and isinstance(op.ops[1], Sparse) and op.ops[1].values.dtype == jnp.bfloat16
    count = op.ops[1].values.size
    assert report.rows[0]["bits"] == pytest.approx(3 + 8 / 16 + count * (16 + 8 + 8) / (K * N))


def test_experts_are_solved_each_for_itself():
    w, x = subject()
    p = {"w": jnp.stack([jnp.asarray(w, jnp.float32), draw.normal(3, K, N)])}
    x = jnp.stack([jnp.asarray(x, jnp.float32)] * 2)
    q, _ = qjax.run(
        recipes.microscopiq(INLIERS, OUTLIERS, deviations=2.5),
        lambda p, x: jnp.einsum("etk,ekn->etn", x, p["w"]), p, [x], schedule="whole",
    )  # fmt: skip
    one, _ = qjax.run(
        recipes.microscopiq(INLIERS, OUTLIERS, deviations=2.5), linear, {"w": p["w"][0]}, [x[0]], schedule="whole"
    )
    np.testing.assert_allclose(qjax.dense(q["w"])[0], qjax.dense(one["w"]), atol=1e-5)


BAD = {
    "beyond 0 standard": lambda: transforms.prune_for_outliers(INLIERS, OUTLIERS, deviations=0),
    "without offset": lambda: transforms.prune_for_outliers("int4_g16_affine", OUTLIERS),
    "dividing those of the first": lambda: transforms.prune_for_outliers("int4_g12_floor_e8m0", OUTLIERS),
    "w: blocks of 16 do not divide its 24 inputs": lambda: qjax.run(
        recipes.microscopiq(INLIERS, OUTLIERS), linear, {"w": jnp.ones((24, 2))}, [jnp.ones((4, 24))], schedule="whole"
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
