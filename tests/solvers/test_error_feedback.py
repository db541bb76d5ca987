"""OBQ, GPTAQ, ResComp, GPFQ, LDLQ against their equations; OWQ and SpQR against what their definitions promise."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax import solvers
from qjax.codebooks.binary_codes import binary_codes
from qjax.dispatch import dense
from qjax.quantization import dequantize, quantize
from qjax.solvers import gptq, objective
from tests import draw
from tests.reference import error_feedback_numpy as reference
from tests.reference import gptq_numpy
from tests.solvers import problem
from tests.solvers.problem import FORMAT, GROUP, K, N

NUMBERS = gptq_numpy.symmetric(3, "half", "float32")


def grid(w: np.ndarray, group: int = GROUP):
    """(the rounding of a row on the scales of its group, the scales [K, N])."""
    fitted = [NUMBERS.fit(w[i : i + group], w) for i in range(0, len(w), group)]
    return (
        lambda k, x: NUMBERS.round(x, *fitted[k // group])[1],
        np.repeat([step for step, _ in fitted], group, axis=0)[: len(w)],
    )


@pytest.mark.parametrize("compensation", [0.0, 0.25])
def test_gptaq_and_rescomp_are_their_equations(compensation: float) -> None:
    w, (x, x_float) = problem.weight(), problem.inputs()
    expected = reference.gptaq(w, x, x_float, grid(w)[0], 0.25, compensation)
    h, cross = (jnp.asarray(m, jnp.float32) for m in (x.T @ x, x.T @ x_float))
    q = solvers.gptaq(jnp.asarray(w), h, cross, FORMAT, compensation=compensation, dtype="float64", block=8)
    np.testing.assert_allclose(dequantize(q), expected, atol=1e-5)
    plain, _ = gptq.solve(jnp.asarray(w), h, FORMAT, dtype="float64")
    assert float(jnp.mean(q.codes == plain.codes)) < 0.95


def test_gptaq_in_activation_order_is_gptaq_on_permuted_rows() -> None:
    w, (x, x_float) = problem.weight(), problem.inputs()
    order = np.argsort(-np.diagonal(problem.gram()), kind="stable")
    expected = reference.gptaq(w[order], x[:, order], x_float[:, order], grid(w[order], K)[0], 0.25, 0.25)
    q = solvers.gptaq(
        *map(jnp.asarray, (w, problem.gram(), problem.cross())), "int3_f32", compensation=0.25, order="activation"
    )
    np.testing.assert_allclose(dequantize(q)[order], expected, atol=1e-4)


def test_gptaq_is_gptq_where_the_streams_agree() -> None:
    w, h = problem.given()
    plain, _ = gptq.solve(w, h, FORMAT)
    np.testing.assert_array_equal(solvers.gptaq(w, h, h, FORMAT).codes, plain.codes)
    with pytest.raises(ValueError, match="cross_gram has shape"):
        solvers.gptaq(w, h, h[1:], FORMAT)


def test_gptaq_comes_closer_to_the_float_output() -> None:
    w, h = problem.given()
    x, x_float = problem.inputs()

    def distance(q) -> float:
        return float(np.sum((x @ np.asarray(dequantize(q)) - x_float @ np.asarray(w)) ** 2))

    plain, _ = gptq.solve(w, h, FORMAT)
    assert distance(solvers.gptaq(w, h, jnp.asarray(problem.cross()), FORMAT)) < distance(plain)


def test_obq_takes_the_exact_greedy_order() -> None:
    w = problem.weight()
    w[3, 2] = 9.0  # its group's scale follows it, and then everything else there is small
    round_row, step = grid(w)
    expected = reference.obq(w, problem.gram(), round_row, 0.5 * step)
    q = solvers.obq(jnp.asarray(w), jnp.asarray(problem.gram()), FORMAT)
    np.testing.assert_allclose(dequantize(q), expected, atol=1e-4)


def test_gpfq_follows_the_path_over_the_samples() -> None:
    w, (x, x_float) = problem.weight(), problem.inputs()
    h, cross = jnp.asarray(problem.gram()), jnp.asarray(problem.cross())
    same = solvers.gpfq(jnp.asarray(w), h, FORMAT)
    np.testing.assert_allclose(dequantize(same), reference.gpfq(w, x, x, grid(w)[0]), atol=1e-4)
    other = solvers.gpfq(jnp.asarray(w), h, FORMAT, cross_gram=cross)
    np.testing.assert_allclose(dequantize(other), reference.gpfq(w, x, x_float, grid(w)[0]), atol=1e-4)
    # The quantized stream alone is one sweep of coordinate descent from the weights.
    sweep = solvers.quantease(jnp.asarray(w), h, FORMAT, sweeps=1)
    assert float(jnp.mean(sweep.codes == same.codes)) > 0.98


def test_spfq_rounds_up_or_down_without_bias() -> None:
    w, _ = problem.given()
    keys = jax.random.split(jax.random.key(0), 400)
    many = jax.vmap(lambda key: dequantize(solvers.gpfq(w, jnp.eye(K), FORMAT, key=key)))(keys)
    inside = jnp.abs(w) < 3 * jnp.repeat(quantize(w, FORMAT).scales[0], GROUP, axis=0)
    error = jnp.mean(many, axis=0) - w
    # A mean of 400 roundings, each off by at most a step: four standard deviations.
    assert float(jnp.max(jnp.abs(jnp.where(inside, error, 0)))) < 4 * float(jnp.max(quantize(w, FORMAT).scales[0])) / 40
    assert len(np.unique(np.asarray(many[:, 0, 0]))) == 2


def test_ldlq_is_gptq() -> None:
    w = problem.weight()
    expected = reference.ldlq(w, problem.gram(), grid(w)[0])
    q, _ = gptq.solve(jnp.asarray(w), jnp.asarray(problem.gram()), FORMAT, dtype="float64")
    np.testing.assert_allclose(dequantize(q), expected, atol=1e-5)


def test_owq_keeps_the_sensitive_rows_at_their_least_squares() -> None:
    w, h = problem.given()
    op = solvers.owq(w, h, FORMAT, channels=3)
    lost = np.asarray(w - dequantize(quantize(w, FORMAT)))
    sensitivity = np.diagonal(h) * (lost**2).sum(1)
    weak = np.sort(np.asarray(op.order[-3:]))
    np.testing.assert_array_equal(weak, np.sort(np.argsort(-sensitivity)[:3]))
    # Given the codes, no move of the kept rows lowers the damped objective: its gradient there is zero.
    error = np.asarray(w, np.float64) - np.asarray(dense(op), np.float64)
    gradient = reference.damped(np.asarray(h), 0.01) @ error
    assert np.abs(gradient[weak]).max() < 4e-3 * np.abs(gradient).max()  # they are kept in float16
    assert objective(h, w - dense(op)) < objective(h, w - dequantize(gptq.solve(w, h, FORMAT)[0]))
    with pytest.raises(ValueError, match="keeps 32 of 32"):
        solvers.owq(w, h, FORMAT, channels=K)


def test_spqr_finds_outliers_and_frees_their_groups() -> None:
    w, h = problem.given()
    planted = [(1, 2), (9, 5), (20, 0), (30, 7)]
    for k, n in planted:
        w = w.at[k, n].set(12.0)
    op = solvers.spqr(w, h, FORMAT, outliers=8 / w.size, damp=0.01)
    order, (q, sparse) = np.asarray(op.T.order), op.op.ops
    np.testing.assert_array_equal(order, np.argsort(-np.diagonal(h), kind="stable"))
    entries = zip(sparse.ins, sparse.outs, sparse.values, strict=True)
    assert set(planted) <= {(int(order[k]), int(n)) for k, n, v in entries if v != 0} and len(sparse.values) == 8
    # No group is stretched by what stands apart: as if the planted weights had not been there.
    assert float(jnp.max(jnp.abs(q.scales[0]))) < 0.3 * 12 / 3.5
    assert objective(h, w - dense(op)) < 0.3 * objective(h, w - dequantize(gptq.solve(w, h, FORMAT)[0]))


def test_spqr_stores_every_weight_it_does_not_repair() -> None:
    """More outliers are never worse, and the share allowed is used: none is left out of both parts."""
    x = draw.normal(5, 256, 128) * jnp.exp(draw.normal(6, 1, 128))
    w, h = draw.normal(7, 128, 96), x.T @ x
    errors = []
    for share in (0.001, 0.01, 0.05):
        op = solvers.spqr(w, h, "int3_g16_affine", outliers=share, damp=0.01)
        values = op.op.ops[1].values
        assert int(jnp.sum(values != 0)) >= 0.75 * values.size
        errors.append(float(objective(h, w - dense(op))))
    none = float(objective(h, w - dequantize(gptq.solve(w, h, "int3_g16_affine", order="activation")[0])))
    assert errors[2] < 0.8 * errors[1] and errors[1] < 0.95 * errors[0] and errors[0] < 1.05 * none, (errors, none)


def test_gptqt_takes_the_best_binary_coding_of_its_integers() -> None:
    """Every coding and shrinkage by brute force, on the weighted error of rounding each integer to the coding."""
    w, h = problem.given()
    q = solvers.gptqt(w, h, "int2_f32", first=3, damp=1e6)  # so much damping makes GPTQ round to nearest
    step, table = np.asarray(q.scales[0])[0], np.asarray(q.table)[0]
    weights = np.diagonal(np.asarray(h))
    for n in range(N):
        x = np.asarray(w)[:, n] / step[n]
        errors = {}
        for f in binary_codes(3).shrink:
            code = np.clip(np.rint((x / f + 1) * 3.5), 0, 7)
            for a in range(1, 7):
                for b in range(a, 8 - a):
                    for c in range(8 - a - b):
                        levels = np.array([c, c + a, c + b, c + a + b])
                        reached = levels[np.argmin(np.abs(levels[:, None] - code), axis=0)]
                        errors[f, a, b, c] = weights @ (x - f * (2 * reached / 7 - 1)) ** 2
        f, a, b, c = min(errors, key=errors.get)
        best = f * (2 * np.sort([c, c + a, c + b, c + a + b]) / 7 - 1)
        assert np.allclose(table[n], best, atol=1e-6) or np.isclose(sorted(errors.values())[1], min(errors.values()))
    values = table[:, None] * step[:, None, None]
    nearest = np.take_along_axis(values[:, 0], np.argmin(np.abs(values - np.asarray(w).T[..., None]), axis=-1), axis=-1)
    np.testing.assert_allclose(dequantize(q).T, nearest, atol=1e-5)
    assert objective(h, w - dequantize(solvers.gptqt(w, h, "int2_f32", first=3))) < objective(h, w - dequantize(q))


BAD = {
    "at least one sweep": lambda w, h: solvers.quantease(w, h, FORMAT, sweeps=0),
    "start='zero'": lambda w, h: solvers.alternating(w, h, FORMAT, start="zero"),
    "at least one round": lambda w, h: solvers.decoupleq(w, h, FORMAT, rounds=0),
    "0 < p <= 1": lambda w, h: solvers.hqq(w, FORMAT, p=2.0),
    "keeps some and not all": lambda w, h: solvers.spqr(w, h, FORMAT, outliers=0.0),
    "incoherence 'haar'": lambda w, h: solvers.quip(w, h, FORMAT, jax.random.key(0), incoherence="haar"),
    "redundancy of 0.5": lambda w, h: solvers.sigma_delta(w, FORMAT, redundancy=0.5),
    "redundancy=0.5": lambda w, h: solvers.framequant(w, h, FORMAT, jax.random.key(0), redundancy=0.5),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD[message](*problem.given())
