"""LQER and L²QER: the best repair of a given rank, and which inputs it favours."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from qjax.quantization import dequantize, quantize
from qjax.solvers import low_rank, rtn


def weight() -> jnp.ndarray:
    return jnp.asarray(np.random.default_rng(0).normal(size=(48, 32)).astype(np.float32))


def test_error_is_what_eckart_and_young_leave() -> None:
    w = weight()
    q = rtn(w, "int3_g16")
    error = np.asarray(w - dequantize(q), np.float64)
    left = np.linalg.svd(error, compute_uv=False)
    for rank in (1, 4, 32):
        a, b = low_rank(w, q, rank)
        assert a.shape == (48, rank) and b.shape == (rank, 32)
        rest = np.linalg.norm(error - np.asarray(a @ b, np.float64))
        np.testing.assert_allclose(rest, np.sqrt((left[rank:] ** 2).sum()), rtol=1e-4, atol=1e-5)


def test_a_scale_minimizes_the_weighted_error_and_skips_dead_inputs() -> None:
    w = weight()
    q = rtn(w, "int3_g16")
    scale = jnp.exp(jnp.asarray(np.random.default_rng(1).normal(size=48).astype(np.float32))).at[3].set(0)
    a, b = low_rank(w, q, 4, scale=scale)
    plain = low_rank(w, q, 4)

    def weighted(a: jnp.ndarray, b: jnp.ndarray) -> float:
        return float(jnp.linalg.norm(scale[:, None] * (w - dequantize(q) - a @ b)))

    left = np.linalg.svd(np.asarray(scale[:, None] * (w - dequantize(q)), np.float64), compute_uv=False)
    np.testing.assert_allclose(weighted(a, b), np.sqrt((left[4:] ** 2).sum()), rtol=1e-4)
    assert weighted(a, b) < weighted(*plain)
    assert not np.asarray(a[3]).any()


def test_rtn_is_quantize() -> None:
    w = weight()
    np.testing.assert_array_equal(rtn(w, "nvfp4").codes, quantize(w, "nvfp4").codes)
    stacked = rtn(jnp.stack([w, 2 * w]), "int4_g16")
    assert stacked.shape == (2, 48, 32)


@pytest.mark.parametrize(
    ("message", "arguments"),
    [
        ("rank 0", (0,)),
        ("rank 33", (33,)),
        ("one value per input channel", (4, jnp.ones(32))),
    ],
)
def test_bad_input_is_refused(message: str, arguments: tuple) -> None:
    w = weight()
    with pytest.raises(ValueError, match=message):
        low_rank(w, quantize(w, "int4_g16"), *arguments)
