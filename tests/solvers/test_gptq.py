"""GPTQ against its equations in float64 numpy, and the promises around it: damping, dead inputs, one compilation."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax.codebooks.normal_quantiles import normal_float
from qjax.formats.format import Format
from qjax.formats.integer import Int
from qjax.formats.spelling import as_format
from qjax.quantization import dequantize, quantize
from qjax.solvers import gptq, objective
from tests.reference import gptq_numpy

K, N = 96, 24

FORMATS = {
    "int4_g16": (gptq_numpy.symmetric(4), 16),
    "int4_g32_f32": (gptq_numpy.symmetric(4, "half", "float32"), 32),
    "int4_g20_narrow": (gptq_numpy.symmetric(4, "narrow"), 20),
    "int3_g16_signed": (gptq_numpy.symmetric(3, "signed"), 16),
    "int3_g32_affine": (gptq_numpy.affine(3), 32),
    "int8_channel": (gptq_numpy.symmetric(8), K),
    "nf4_g16_f32": (gptq_numpy.codebook(np.array(normal_float(4))), 16),
    "mxfp4": (gptq_numpy.mxfp4(), 32),
    "nvfp4": (gptq_numpy.nvfp4(), 16),
}


def problem(seed: int = 0, rows: int = K, columns: int = N, dead: int | None = 5) -> tuple[np.ndarray, np.ndarray]:
    """A weight, and the Gram matrix of inputs with unequal scales, correlations and one dead channel."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4 * rows, rows)) * np.exp(rng.normal(size=rows))
    x += 0.5 * x[:, :1]
    if dead is not None:
        x[:, dead] = 0
    return rng.normal(size=(rows, columns)).astype(np.float32), (x.T @ x).astype(np.float32)


# Every format where it is hardest, rows permuted and scales refitted in the middle of a block; one of each kind else.
CASES = [(name, "fresh", "activation") for name in FORMATS]
KINDS = ("int4_g16", "int3_g32_affine", "nf4_g16_f32", "nvfp4")
CASES += [(name, groups, "activation") for name in KINDS for groups in ("static", "stale")]
CASES += [("int3_g32_affine", groups, "none") for groups in ("static", "stale", "fresh")]


@pytest.mark.parametrize(("name", "groups", "order"), CASES)
def test_codes_are_those_of_the_equations(name: str, groups: str, order: str) -> None:
    w, gram = problem()
    numbers, group = FORMATS[name]
    expected = gptq_numpy.gptq(w, gram, numbers, group, groups=groups, order=order, block=32)
    factored = gptq.factor(jnp.asarray(gram), order=order, dtype="float64")
    q, _ = gptq.sweep(jnp.asarray(w), factored, name, groups=groups, block=32)
    np.testing.assert_array_equal(dequantize(q), expected.values.astype(np.float32))
    if isinstance(as_format(name).element, Int):
        np.testing.assert_array_equal(q.codes[:K], expected.codes)


def test_a_group_chooses_its_element_from_the_weights_as_they_are_then() -> None:
    w, gram = problem()
    numbers = gptq_numpy.either(gptq_numpy.symmetric(4, "narrow", "float32"), FORMATS["nf4_g16_f32"][0])
    expected = gptq_numpy.gptq(w, gram, numbers, 16, groups="fresh", order="activation", block=32)
    factored = gptq.factor(jnp.asarray(gram), order="activation", dtype="float64")
    q, _ = gptq.sweep(jnp.asarray(w), factored, "int4_g16_narrow_f32|nf4_g16_f32", groups="fresh", block=32)
    np.testing.assert_array_equal(dequantize(q), expected.values.astype(np.float32))
    assert 0 < float(jnp.mean(q.table)) < 1 and q.table.shape == (6, N, 1)
    with pytest.raises(ValueError, match="use 'static'"):
        gptq.sweep(jnp.asarray(w), factored, "mofq4_g16", groups="fresh")


def test_float32_gives_the_same_codes_on_a_benign_problem() -> None:
    w, gram = problem(2)
    numbers, group = FORMATS["int4_g16"]
    q, _ = gptq.solve(jnp.asarray(w), jnp.asarray(gram), "int4_g16")
    np.testing.assert_array_equal(q.codes, gptq_numpy.gptq(w, gram, numbers, group).codes)


def test_the_report_is_the_objective_on_the_gram_matrix_as_given() -> None:
    w, gram = map(jnp.asarray, problem())
    for order in ("none", "activation"):
        q, info = gptq.solve(w, gram, "int4_g16", order=order)
        np.testing.assert_allclose(info.before, objective(gram, w - dequantize(quantize(w, "int4_g16"))), rtol=1e-5)
        np.testing.assert_allclose(info.after, objective(gram, w - dequantize(q)), rtol=1e-5)
        assert info.after < 0.8 * info.before and info.dead == 1 and not info.fallback


def test_float64_leaves_no_trace() -> None:
    w, gram = map(jnp.asarray, problem())
    exact, info = gptq.solve(w, gram, "int4_g16", dtype="float64")
    jitted, _ = jax.jit(lambda w, gram: gptq.solve(w, gram, "int4_g16", dtype="float64"))(w, gram)
    assert not jax.config.jax_enable_x64 and jnp.ones(2).dtype == jnp.float32
    assert {leaf.dtype for leaf in jax.tree.leaves((exact, info))} <= {
        jnp.dtype(d) for d in ("int8", "bfloat16", "float32", "bool", "int32")
    }
    np.testing.assert_array_equal(exact.codes, jitted.codes)


def test_a_minimum_and_a_last_group_that_is_not_full() -> None:
    w, gram = problem(3, rows=40, dead=None)
    fmt = Format(Int(3, signed=False), 16, rule="minmax", offset="minimum")
    for groups in ("static", "fresh"):
        q, info = gptq.solve(jnp.asarray(w), jnp.asarray(gram), fmt, groups=groups, block=8)
        assert q.shape == w.shape and q.meta.padding == (8, 0)
        assert info.after < info.before


def test_double_quantized_scales_keep_their_outer_level() -> None:
    w, gram = map(jnp.asarray, problem())
    nearest = quantize(w, "nf4_g16")
    for groups in ("static", "fresh"):
        q, info = gptq.solve(w.at[5].set(0), gram, "nf4_g16", groups=groups, block=32)
        np.testing.assert_array_equal(q.scales[0].scales[0], quantize(w.at[5].set(0), "nf4_g16").scales[0].scales[0])
        assert jax.tree.structure(q) == jax.tree.structure(nearest)
        assert info.after < info.before


def test_identity_gram_is_round_to_nearest() -> None:
    w, _ = problem()
    q, info = gptq.solve(jnp.asarray(w), jnp.eye(K), "int3_g16", damp=0.0)
    np.testing.assert_array_equal(q.codes, quantize(jnp.asarray(w), "int3_g16").codes)
    assert info.before == info.after


def test_the_scale_of_the_gram_matrix_does_not_matter() -> None:
    w, gram = problem(dead=None)
    one, _ = gptq.solve(jnp.asarray(w), jnp.asarray(gram), "int4_g16")
    other, _ = gptq.solve(jnp.asarray(w), jnp.asarray(gram) * 2.0**-20, "int4_g16")
    np.testing.assert_array_equal(one.codes, other.codes)


def test_blocks_only_change_when_work_is_done() -> None:
    """Lazy updates are exact: the block length has no say in the codes, except through "stale" scales."""
    w, gram = map(jnp.asarray, problem())
    codes = [gptq.solve(w, gram, "int4_g16", block=block, dtype="float64")[0].codes for block in (1, 32, 50, 128)]
    for other in codes[1:]:
        np.testing.assert_array_equal(codes[0], other)


def test_damping_is_raised_until_the_factor_is_finite() -> None:
    w, _ = problem()
    x = np.random.default_rng(0).normal(size=(8, K)).astype(np.float32)  # rank 8 of 96
    q, info = gptq.solve(jnp.asarray(w), jnp.asarray(x.T @ x), "int4_g16", damp=1e-9)
    assert not info.fallback and 1e-9 < info.damp < 1e-2
    assert info.after < info.before
    assert np.isfinite(np.asarray(dequantize(q))).all()


@pytest.mark.parametrize(
    "gram", [-np.eye(K, dtype=np.float32), np.full((K, K), np.nan, np.float32), np.zeros((K, K), np.float32)]
)
def test_a_hopeless_gram_matrix_falls_back_to_nearest_and_says_so(gram: np.ndarray) -> None:
    w, _ = problem()
    q, info = gptq.solve(jnp.asarray(w), jnp.asarray(gram), "int4_g16", groups="fresh")
    assert info.fallback and info.dead == 0
    np.testing.assert_array_equal(q.codes, quantize(jnp.asarray(w), "int4_g16").codes)


def test_dead_inputs_get_zero_weights() -> None:
    w, gram = problem(dead=7)
    q, info = gptq.solve(jnp.asarray(w), jnp.asarray(gram), "int4_g16")
    assert info.dead == 1
    assert not np.asarray(dequantize(q))[7].any()


def test_weights_with_one_input_share_a_factor_and_may_be_joined() -> None:
    w, gram = map(jnp.asarray, problem())
    factored = gptq.factor(gram, order="activation")
    joined, _ = gptq.sweep(jnp.concatenate([w, -w], axis=1), factored, "int4_g16")
    left, _ = gptq.sweep(w, factored, "int4_g16")
    right, _ = gptq.sweep(-w, factored, "int4_g16")
    np.testing.assert_array_equal(joined.codes, np.concatenate([left.codes, right.codes], axis=1))


def test_the_sweep_returns_the_weights_it_rounded() -> None:
    w, gram = map(jnp.asarray, problem())
    q, repaired = gptq.sweep(w, gptq.factor(gram), "int4_g16", groups="static")
    error = jnp.abs(dequantize(q) - repaired)
    assert bool(jnp.all(repaired[0] == w[0])) and float(jnp.median(error)) < 0.3


def test_vmap_is_a_loop() -> None:
    pairs = [problem(seed) for seed in range(2)]
    w, gram = (jnp.stack([jnp.asarray(p[i]) for p in pairs]) for i in range(2))
    batched, info = jax.vmap(lambda w, gram: gptq.solve(w, gram, "int4_g16", groups="fresh"))(w, gram)
    assert batched.shape == (2, K, N) and info.after.shape == (2,)
    for i in range(2):
        alone, _ = gptq.solve(w[i], gram[i], "int4_g16", groups="fresh")
        np.testing.assert_array_equal(batched.codes[i], alone.codes)


def test_logical_dtype_is_the_weights() -> None:
    w, gram = problem()
    q, _ = gptq.solve(jnp.asarray(w).astype(jnp.bfloat16), jnp.asarray(gram), "int4_g16")
    assert q.dtype == jnp.bfloat16 and dequantize(q).dtype == jnp.bfloat16


def test_a_second_matrix_compiles_nothing() -> None:
    for seed in (4, 5):
        w, gram = problem(seed)
        gptq.solve(jnp.asarray(w), jnp.asarray(gram), "int4_g32", damp=0.01 * seed)
        sizes = gptq._sweep._cache_size(), gptq._factor._cache_size()
        if seed == 4:
            before = sizes
    assert sizes == before


BAD = {
    "gram has shape": lambda w, h: gptq.solve(w, h[:-1], "int4_g16"),
    "one square matrix": lambda w, h: gptq.factor(h[None]),
    "does not fit a weight": lambda w, h: gptq.sweep(w[:-1], gptq.factor(h), "int4_g16"),
    "'none' nor 'activation'": lambda w, h: gptq.solve(w, h, "int4_g16", order="weight"),
    "static, stale, fresh": lambda w, h: gptq.solve(w, h, "int4_g16", groups="dynamic"),
    "'float32' nor 'float64'": lambda w, h: gptq.solve(w, h, "int4_g16", dtype="bfloat16"),
    "block must be positive": lambda w, h: gptq.solve(w, h, "int4_g16", block=0),
    "unknown format": lambda w, h: gptq.solve(w, h, "int4_h16"),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused(message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BAD[message](*map(jnp.asarray, problem()))
