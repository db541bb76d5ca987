"""Solvers in every kind of format, on a layer with outlier channels: each improves its own objective on rounding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax.quantization import dequantize
from qjax.solvers import awq, d2quant, loftq, objective, qera, rtn
from tests.solvers.cases import FORMATS, gram, output_error, problem, quick


def everything(fmt: str):
    def solve(w: jnp.ndarray, x: jnp.ndarray, h: jnp.ndarray) -> dict[str, jnp.ndarray]:
        found = awq.search((w,), h, jnp.mean(jnp.abs(x), axis=0), fmt, alphas=(0.0, 0.2, 0.4, 0.6, 0.8))
        dual = d2quant.dual_scale(w, fmt, steps=6)
        scales = jnp.stack([jnp.ones(w.shape[0]), found.scale, 1 / dual.scale])[:, :, None]
        plain, searched, dually = w[None] - dequantize(rtn(scales * w[None], fmt)) / scales
        turns = loftq.alternate(w, lambda m: rtn(m, fmt), 4, steps=3)
        a, b = qera.exact(w, w - plain, h, 4)
        return {
            "rtn": plain,
            "search": searched,
            "search promised": jnp.min(found.errors),
            "clipped": w - dequantize(awq.clipped(w, h, fmt, points=8)),
            "dual": dually,
            "dual promised": jnp.min(dual.errors),
            "turns": w - dequantize(turns.q) - turns.a @ turns.b,
            "turns errors": turns.errors,
            "exact": plain - a @ b,
        }

    return quick(solve)


@pytest.mark.parametrize("fmt", FORMATS)
def test_each_solver_improves_its_own_objective(fmt: str) -> None:
    w, x = problem(2)
    w = w * jnp.exp(0.5 * jax.random.normal(jax.random.key(0), (w.shape[0], 1)))
    h = gram(x)
    out = everything(fmt)(w, x, h)

    def output(name: str) -> float:
        return output_error(x, out[name])

    def weights(name: str) -> float:
        return float(jnp.sum(out[name] ** 2))

    np.testing.assert_allclose(output("search"), out["search promised"], rtol=1e-3)
    assert output("search") < 0.7 * output("rtn")
    blocks = np.asarray(h).copy()
    size = {"int4_g16": 16, "nf4_g16_f32": 16, "nvfp4": 16, "int2_g16_narrow": 16}.get(fmt, 32)
    place = np.arange(len(w)) // size
    blocks[place[:, None] != place[None, :]] = 0
    own = {name: float(objective(jnp.asarray(blocks), out[name])) for name in ("rtn", "clipped")}
    assert own["clipped"] < own["rtn"]
    np.testing.assert_allclose(weights("dual"), out["dual promised"], rtol=1e-4)
    assert weights("dual") < weights("rtn")
    np.testing.assert_allclose(weights("turns"), jnp.min(out["turns errors"]), rtol=1e-3)
    assert jnp.min(out["turns errors"][1:]) < out["turns errors"][0] < weights("rtn")
    assert output("exact") < 0.5 * output("rtn")
