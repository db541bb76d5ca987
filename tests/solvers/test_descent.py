"""Descent and what is made of it: objectives that must not rise, optima that brute force and least squares confirm."""

from __future__ import annotations

import itertools

import jax.numpy as jnp
import numpy as np
import pytest

from qjax import solvers
from qjax.codebooks.kmeans import kmeans
from qjax.dispatch import dense
from qjax.formats import Format
from qjax.formats.integer import Int
from qjax.formats.table import Table
from qjax.quantization import dequantize, encode, quantize
from qjax.solvers import descent, gptq, group_scales, objective
from tests.solvers import problem
from tests.solvers.problem import FORMAT, GROUP, K

FORMATS = {
    "zero point": "int3_g16_affine",
    "minimum": Format(Int(2, signed=False), 16, scale="float16", rule="minmax", offset="minimum"),
    "tensor": "int3_tensor",
    "nf4 double": "nf4_g16",
    "mxfp4": "mxfp4",
    "nvfp4": "nvfp4",
    "k-means": Format(Table("eight", tuple(float(i) for i in range(-4, 4))), scale=None, levels=kmeans()),
    "ternary": Format(Table("ternary", (-1.0, 0.0, 1.0)), 16, scale="float32"),
}


def lost(w, h, op) -> float:
    return float(objective(h, w - dense(op).astype(jnp.float32)))


@pytest.mark.parametrize("name", FORMATS)
def test_scales_then_codes_never_raise_the_objective_in_any_format(name: str) -> None:
    """Alternating least squares from round to nearest: every turn at most the last."""
    w, h = problem.given()
    f = FORMATS[name]
    steps = [lost(w, h, solvers.alternating(w, h, f, rounds=n, start="nearest")) for n in range(4)]
    assert all(b <= a * (1 + 1e-5) for a, b in itertools.pairwise(steps))
    # Tables of their own have no scales to move: only codes.
    assert steps[3] < (0.97 if name == "k-means" else 0.75) * steps[0]


def test_a_row_pass_ends_where_no_single_code_can_move() -> None:
    w, h = problem.given()
    q = solvers.quantease(w, h, FORMAT, sweeps=30, start="nearest", relax=0)
    values, step = np.asarray(dequantize(q), np.float64), np.asarray(q.scales[0], np.float64)
    error, gram = np.asarray(w, np.float64) - values, np.asarray(h, np.float64)
    pull = gram @ error
    for k in range(K):
        for code in range(-4, 4):
            move = code * step[k // GROUP] - values[k]
            change = move**2 * gram[k, k] - 2 * move * pull[k]
            assert np.all(change > -1e-4 * np.sum(error * pull))


def test_a_scale_pass_is_least_squares() -> None:
    """One group a column: the scale and the minimum are those of a weighted linear fit of the weights on the codes."""
    w, h = problem.given()
    f = Format(Int(3, signed=False), K, scale="float32", rule="minmax", offset="minimum")
    q = quantize(w, f)
    scales = group_scales.of_grid(q.grid, *w.shape)
    point, new = descent.scales(descent.at(w, dequantize(q), h), h, scales, f)
    root = np.linalg.cholesky(np.asarray(h, np.float64)).T
    for n in range(w.shape[1]):
        basis = np.stack([np.asarray(q.codes)[:, n].astype(np.float64), np.ones(K)], axis=1)
        best = np.linalg.lstsq(root @ basis, root @ np.asarray(w, np.float64)[:, n], rcond=None)[0]
        np.testing.assert_allclose([new.step[0, n], new.offset[0, n]], best, rtol=2e-4)
    np.testing.assert_array_equal(encode(new.grid, point.values).codes, q.codes)
    np.testing.assert_allclose(point.residual, h @ (w - point.values), rtol=1e-3, atol=2e-2)


def test_quantease_never_rises_and_refines_gptq() -> None:
    w, h = problem.given()
    steps = [lost(w, h, solvers.quantease(w, h, FORMAT, sweeps=n, start="gptq", relax=0)) for n in (1, 2, 5, 10)]
    before = lost(w, h, gptq.solve(w, h, FORMAT)[0])
    assert all(b <= a * (1 + 1e-6) for a, b in itertools.pairwise([before, *steps]))
    assert steps[-1] < before


def test_sparse_outliers_take_what_the_grid_cannot() -> None:
    w, h = problem.given()
    w = w.at[3, 4].set(15.0)
    op = solvers.quantease(w, h, FORMAT, sweeps=9, outliers=4 / w.size)
    _, sparse = op.ops
    assert (3, 4) in set(zip(sparse.ins.tolist(), sparse.outs.tolist(), strict=True)) and len(sparse.values) == 4
    assert lost(w, h, op) < 0.7 * lost(w, h, solvers.quantease(w, h, FORMAT, sweeps=9))


def test_decoupleq_is_at_most_gptq_and_nearest() -> None:
    w, h = problem.given()
    damped = h + 0.01 * jnp.mean(jnp.diagonal(h)) * jnp.eye(K)
    steps = [lost(w, damped, solvers.decoupleq(w, h, "int2_g16_affine", rounds=n)) for n in (1, 2, 4)]
    start = lost(w, damped, quantize(w, "int2_g16_affine"))
    assert all(b <= a * (1 + 1e-5) for a, b in itertools.pairwise([start, *steps]))
    assert steps[-1] < 0.5 * start


def test_every_solver_is_the_brute_force_optimum_on_independent_inputs() -> None:
    """With a diagonal Gram matrix and fixed scales every weight stands alone: all its eight levels are tried."""
    w, _ = problem.given()
    h = jnp.diag(jnp.linspace(0.5, 3.0, K))
    levels = np.repeat(np.asarray(quantize(w, FORMAT).scales[0]), GROUP, axis=0)[..., None] * np.arange(-4, 4)
    least = np.min((levels - np.asarray(w)[..., None]) ** 2, axis=-1)
    for q in (
        solvers.obq(w, h, FORMAT),
        solvers.quantease(w, h, FORMAT, sweeps=2),
        solvers.gpfq(w, h, FORMAT),
        gptq.solve(w, h, FORMAT)[0],
    ):
        np.testing.assert_allclose((w - dequantize(q)) ** 2, least, atol=1e-6)


def test_hqq_lowers_the_lp_error_of_every_block() -> None:
    w, _ = problem.given()
    w = jnp.sign(w) * jnp.abs(w) ** 2  # heavy tails, which p < 1 forgives
    for f in (FORMATS["minimum"], FORMAT):

        def error(q, f=f):
            return (jnp.abs(w - dequantize(q)) ** 0.7).reshape(K // GROUP, GROUP, -1).sum(1)

        before, after = error(quantize(w, f)), error(solvers.hqq(w, f))
        assert bool(jnp.all(after <= before * (1 + 1e-6))) and float(after.sum()) < 0.93 * float(before.sum())
    q, first = solvers.hqq(w, FORMATS["minimum"]), quantize(w, FORMATS["minimum"])
    np.testing.assert_array_equal(q.scales[0], first.scales[0])
