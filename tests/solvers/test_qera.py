"""Whitened low rank: the least error at the layer's output, alone, shared between matrices, and in turns."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax.formats import Format, Int
from qjax.quantization import dequantize
from qjax.solvers import glowq, hqq, loftq, low_rank, qera, rtn, singular, whitening
from tests.solvers.cases import K, N, gram, output_error, problem, quick

RANK = 4


def least(x: jnp.ndarray, error: jnp.ndarray, rank: int = RANK) -> float:
    """What no correction of this rank can beat: ‖XE‖² less its largest singular values, in float64."""
    s = np.linalg.svd(np.asarray(x, np.float64) @ np.asarray(error, np.float64), compute_uv=False)
    return float(np.sum(s[rank:] ** 2))


@pytest.mark.parametrize("fmt", ["int4_g16", "nvfp4"])
def test_exact_is_the_optimum_and_the_others_follow(fmt: str) -> None:
    w, x = problem()
    h, q = gram(x), rtn(w, fmt)
    error = w - dequantize(q)

    def left(a: jnp.ndarray, b: jnp.ndarray) -> float:
        return output_error(x, error - a @ b)

    size = jnp.mean(jnp.abs(x), axis=0)
    exact = left(*qera.exact(w, q, h, RANK))
    np.testing.assert_allclose(exact, least(x, error), rtol=1e-4)
    rest = [left(*qera.approximate(w, q, h, RANK)), left(*low_rank(w, q, RANK, size)), left(*low_rank(w, q, RANK))]
    assert exact < min(rest) and max(rest[:2]) < rest[2] < output_error(x, error)


def test_no_nearby_correction_is_better() -> None:
    w, x = problem(1)
    q = rtn(w, "int3_g32_affine")
    a, b = qera.exact(w, q, gram(x), RANK)
    error = np.asarray(w - dequantize(q), np.float64)
    best = output_error(x, error - np.asarray(a, np.float64) @ np.asarray(b, np.float64))
    rng = np.random.default_rng(0)
    for size in 10.0 ** -np.arange(1, 6):
        da, db = (size * rng.normal(size=m.shape) * np.std(np.asarray(m), axis=None) for m in (a, b))
        assert output_error(x, error - (np.asarray(a) + da) @ (np.asarray(b) + db)) >= best * (1 - 1e-6)


def test_eora_projects_onto_eigenvectors_and_arrives_at_the_same_matrix() -> None:
    w, x = problem(2)
    q = rtn(w, "nf4_g16_f32")
    values, vectors = np.linalg.eigh(np.asarray(x, np.float64).T @ np.asarray(x, np.float64))
    projection = vectors * np.sqrt(values)
    u, s, vt = np.linalg.svd(projection.T @ np.asarray(w - dequantize(q), np.float64))
    expected = np.linalg.solve(projection.T, u[:, :RANK] * s[:RANK]) @ vt[:RANK]
    a, b = qera.exact(w, q, gram(x), RANK)
    np.testing.assert_allclose(a @ b, expected, atol=2e-4 * np.abs(expected).max())


def test_dead_channels_and_too_few_tokens() -> None:
    w, x = problem(3, tokens=40, dead=5)
    q = rtn(w, "int4_g16")
    root = whitening.whiten(gram(x))
    a, b = low_rank(w, q, RANK, root)
    assert np.isfinite(np.asarray(a)).all() and not np.asarray(a[5]).any()
    assert root.damp > 0
    error = w - dequantize(q)
    np.testing.assert_allclose(output_error(x, error - a @ b), least(x, error), rtol=2e-2)


def test_a_shared_factor_is_the_joint_optimum() -> None:
    w, x = problem(4)
    other = problem(5)[0]
    errors = [w - dequantize(rtn(w, "int3_g32_affine")), other - dequantize(rtn(other, "int3_g32_affine"))]
    root = whitening.whiten(gram(x))
    a, (b, c) = glowq.shared(errors, RANK, root)
    assert a.shape == (K, RANK) and b.shape == (RANK, N) and c.shape == (RANK, N)
    joint = output_error(x, errors[0] - a @ b) + output_error(x, errors[1] - a @ c)
    np.testing.assert_allclose(joint, least(x, jnp.concatenate(errors, axis=1)), rtol=1e-4)
    alone, (d,) = glowq.shared(errors[:1], RANK, root)
    np.testing.assert_allclose(output_error(x, errors[0] - alone @ d), least(x, errors[0]), rtol=1e-4)
    with pytest.raises(ValueError, match="one input"):
        glowq.shared([w, w[:8]], RANK)


def test_shrinkage_is_the_authors() -> None:
    h = np.asarray(gram(problem()[1]), np.float64)
    expected = 0.95 * h + 0.05 * np.trace(h) / K * np.eye(K)
    np.testing.assert_allclose(glowq.shrunk(jnp.asarray(h, jnp.float32)), expected, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("fmt", ["int3_g32_affine", "mxfp4"])
def test_alternation_is_loftq(fmt: str) -> None:
    w, x = problem(6)
    scale = whitening.whiten(gram(x)) if fmt == "mxfp4" else None
    found = quick(lambda w, s: loftq.alternate(w, lambda m: rtn(m, fmt), RANK, steps=4, scale=s))(w, scale)
    rest = w - dequantize(found.q) - found.a @ found.b
    np.testing.assert_allclose(jnp.sum(whitening.apply(scale, rest) ** 2), jnp.min(found.errors), rtol=1e-3)
    # Algorithm 1 of the paper, in float64 but for the rounding itself; its SVD with the root of the Gram matrix.
    root = np.eye(K) if scale is None else np.linalg.cholesky(np.asarray(x, np.float64).T @ np.asarray(x, np.float64)).T
    wide, low, errors = np.asarray(w, np.float64), np.zeros((K, N)), []
    for _ in range(4):
        q = np.asarray(dequantize(rtn(jnp.asarray(wide - low, jnp.float32), fmt)), np.float64)
        u, s, vt = np.linalg.svd(root @ (wide - q), full_matrices=False)
        low = np.linalg.solve(root, u[:, :RANK] * s[:RANK] @ vt[:RANK])
        errors.append(np.sum((root @ (wide - q - low)) ** 2))
    np.testing.assert_allclose(found.errors[0], errors[0], rtol=1e-4)
    np.testing.assert_allclose(found.errors, errors, rtol=3e-2)  # a weight at a tie may round the other way


def test_half_quadratic_turns_are_milos() -> None:
    """MiLo's loop, its decomposition in float64 and every HQQ of its own."""
    w, _ = problem(6)
    fmt = Format(Int(3, signed=False), 16, scale="float32", rule="minmax", offset="minimum")
    found = quick(lambda w: loftq.alternate(w, lambda m: hqq(m, fmt), RANK, steps=4))(w)
    quantized = quick(lambda m: dequantize(hqq(m, fmt)))
    wide, low, errors = np.asarray(w, np.float64), np.zeros((K, N)), []
    for _ in range(4):
        q = np.asarray(quantized(jnp.asarray(wide - low, jnp.float32)), np.float64)
        u, s, vt = np.linalg.svd(wide - q, full_matrices=False)
        low = u[:, :RANK] * s[:RANK] @ vt[:RANK]
        errors.append(np.sum((wide - q - low) ** 2))
    np.testing.assert_allclose(found.errors[0], errors[0], rtol=1e-4)
    np.testing.assert_allclose(found.errors, errors, rtol=3e-2)  # a weight at a tie may round the other way
    assert min(errors) < errors[0]


def test_stacked_layers_are_the_layers() -> None:
    (w, x), (v, y) = problem(7), problem(8)
    ws, hs = jnp.stack([w, v]), jnp.stack([gram(x), gram(y)])
    together = quick(jax.vmap(lambda w, h: qera.exact(w, rtn(w, "int4_g16"), h, RANK)))(ws, hs)
    for i in range(2):
        a, b = qera.exact(ws[i], dequantize(rtn(ws[i], "int4_g16")), hs[i], RANK)
        np.testing.assert_allclose(together[0][i] @ together[1][i], a @ b, atol=1e-4 * float(jnp.abs(a @ b).max()))


def test_small_singular_values_survive_a_large_one() -> None:
    rng = np.random.default_rng(0)
    u, v = (np.linalg.qr(rng.normal(size=(n, n)))[0] for n in (60, 48))
    s = np.concatenate([[3e4, 1e4], np.linspace(3, 1, 46)])
    for m in (u[:, :48] * s @ v.T, v * s @ u[:, :48].T):
        found = quick(lambda m: singular.largest(m, 6))(jnp.asarray(m, jnp.float32))
        np.testing.assert_allclose(found[1], s[:6], rtol=2e-3)
        rest = np.asarray(m) - np.asarray(found[0], np.float64) * np.asarray(found[1]) @ np.asarray(found[2])
        assert np.linalg.norm(rest) < 1.01 * np.linalg.norm(s[6:])
