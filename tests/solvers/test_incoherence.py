"""Maps in front of a rounding: QuIP's rotations, FrameQuant's fusion frames, sigma-delta in the harmonic frame."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from qjax import dispatch, solvers
from qjax.dispatch import dense
from qjax.operators import Kronecker
from qjax.solvers import gptq, objective
from qjax.solvers.fusion_frames import parseval
from qjax.solvers.incoherence import rotation
from tests.solvers import problem
from tests.solvers.problem import FORMAT, K, N

KEY = jax.random.key(5)


def test_quip_turns_back_what_it_turned() -> None:
    w, h = problem.given()
    op = solvers.quip(w, h, "int8_f32", KEY, incoherence="hadamard", range=None)
    assert float(jnp.linalg.norm(dense(op) - w) / jnp.linalg.norm(w)) < 0.02
    x = jnp.asarray(problem.inputs()[0][:4], jnp.float32)
    np.testing.assert_allclose(dispatch.matmul(x, op), x @ dense(op), rtol=1e-3, atol=1e-3)
    # Codes, one scale a column, and D in bfloat16: the rotations follow from the key.
    assert dispatch.bits(op) == 8 * w.size + 32 * N + 16 * K


def test_quip_spreads_what_is_large() -> None:
    w, h = problem.given()
    w = w.at[2, 3].set(30.0).at[:, 5].multiply(4.0)
    plain = gptq.solve(w, h, "int3_tensor")[0]
    op = solvers.quip(w, h, "int3_tensor", KEY)
    assert objective(h, w - dense(op)) < 0.3 * objective(h, w - dense(plain))
    greedy = solvers.quip(w, h, "int3_tensor", KEY, greedy=3)
    assert objective(h, w - dense(greedy)) < objective(h, w - dense(op))


def test_quip_without_incoherence_is_gptq() -> None:
    w, h = problem.given()
    q = solvers.quip(w, h, FORMAT, KEY, incoherence="none", rescale=False, range=None)
    np.testing.assert_array_equal(q.codes, gptq.solve(w, h, FORMAT)[0].codes)


def test_kronecker_rotations_are_orthogonal_and_as_square_as_the_size_allows() -> None:
    m = rotation(KEY, 48, "kronecker")
    assert isinstance(m, Kronecker) and [f.shape for f in m.factors] == [(6, 6), (8, 8)]
    matrix, _ = m.matrix_shift(48)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(48), atol=1e-5)


def test_frames_are_parseval() -> None:
    m = parseval(24, 1.25, 8)
    matrix, _ = m.matrix_shift(24)
    assert matrix.shape == (24, 30)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(24), atol=1e-5)


def test_framequant_returns_to_the_weights_and_gains_from_redundancy() -> None:
    w, h = problem.given()
    once, twice = (solvers.framequant(w, h, "int2_f32", KEY, redundancy=r, chunk=8) for r in (1.0, 1.5))
    assert once.shape == twice.shape == w.shape
    near = [float(jnp.linalg.norm(dense(op) - w) / jnp.linalg.norm(w)) for op in (once, twice)]
    assert near[1] < 0.8 * near[0] < 0.5
    assert objective(h, w - dense(twice)) < 0.8 * objective(h, w - dense(once))
    assert dispatch.bits(twice) == 2 * 1.5**2 * w.size + 32 * 1.5 * N


def test_sigma_delta_error_falls_with_the_number_of_coefficients() -> None:
    w, _ = problem.given()
    errors = [float(jnp.linalg.norm(dense(solvers.sigma_delta(w, "int4_f32", redundancy=r)) - w)) for r in (2.0, 16.0)]
    # 1/M is a factor of 8; independent roundings would give the root of it, 2.8.
    assert errors[1] < errors[0] / 4.5
