"""AWQ's channel scale and clipping against the equations on the inputs themselves."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax.quantization import dequantize
from qjax.solvers import awq, rtn
from tests.reference import awq_numpy, gptq_numpy
from tests.solvers.cases import gram, output_error, problem, quick

NUMBERS = {"int4_g16": (gptq_numpy.symmetric(4), 16), "int3_g32_affine": (gptq_numpy.affine(3), 32)}


@pytest.mark.parametrize(("fmt", "weights"), [("int4_g16", True), ("int3_g32_affine", False)])
def test_the_search_is_the_papers(fmt: str, weights: bool) -> None:
    (w, x), other = problem(), problem(1)[0][:, :8]
    alphas = (0.0, 0.25, 0.5, 0.75, 1.0)
    size = jnp.mean(jnp.abs(x), axis=0)
    search = quick(lambda *ws, h, size: awq.search(ws, h, size, fmt, alphas=alphas, weights=weights))
    found = search(w, other, h=gram(x), size=size)
    ws = [np.asarray(m, np.float64) for m in (w, other)]
    expected = awq_numpy.errors(ws, np.asarray(x, np.float64), *NUMBERS[fmt], alphas, weights)
    np.testing.assert_allclose(found.errors, expected, rtol=2e-2)  # a weight at a tie may round the other way
    best = int(np.argmin(expected))
    assert float(found.alpha) == alphas[best]
    relative = awq_numpy.relative_size(np.concatenate(ws, axis=1), NUMBERS[fmt][1]) if weights else None
    np.testing.assert_allclose(
        found.scale, awq_numpy.scale(np.asarray(x, np.float64), alphas[best], relative), rtol=1e-4
    )


@pytest.mark.parametrize("fmt", NUMBERS)
def test_clipping_is_a_search_of_every_group(fmt: str) -> None:
    w, x = problem(3)
    q = quick(lambda w, h: awq.clipped(w, h, fmt, points=10, shrink=0.5))(w, gram(x))
    expected = awq_numpy.clipped(np.asarray(w), np.asarray(x, np.float64), *NUMBERS[fmt], 10, 5)
    same = np.isclose(np.asarray(dequantize(q)), expected, rtol=1e-5, atol=1e-7)
    assert same.mean() > 0.995


def test_clipping_pads_groups_that_do_not_divide() -> None:
    w, x = problem(4)
    q = quick(lambda w, h: awq.clipped(w, h, "int3_g20_f32"))(w, gram(x))
    assert q.shape == w.shape
    assert output_error(x, w - dequantize(q)) < output_error(x, w - dequantize(rtn(w, "int3_g20_f32")))


def test_stacked_layers_are_the_layers() -> None:
    (w, x), (v, y) = problem(5), problem(6)
    ws, hs = jnp.stack([w, v]), jnp.stack([gram(x), gram(y)])
    sizes = jnp.stack([jnp.mean(jnp.abs(x), 0), jnp.mean(jnp.abs(y), 0)])

    def both(w: jnp.ndarray, h: jnp.ndarray, size: jnp.ndarray):
        scale = awq.search((w,), h, size, "int4_g16", alphas=(0.0, 0.5)).scale
        return scale, awq.clipped(w, h, "int4_g16", points=4).codes

    one = quick(both)
    scales, codes = quick(jax.vmap(both))(ws, hs, sizes)
    for i in range(2):
        scale, code = one(ws[i], hs[i], sizes[i])
        np.testing.assert_allclose(scales[i], scale, rtol=1e-5)
        assert np.mean(np.asarray(codes[i] == code)) > 0.999


def test_bad_input_is_refused() -> None:
    w, x = problem()
    with pytest.raises(ValueError, match="share a scale"):
        awq.clipped(w, gram(x), "int8_tensor")
    with pytest.raises(ValueError, match="do not fit"):
        awq.search((w,), gram(x), jnp.ones(3), "int4_g16")
