"""CrossQuant's recipe against its equation, and the paper's reason: fewer activations become zero."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import qjax


def model(p, x):
    return x @ p["w"]


def test_inputs_are_rounded_by_row_and_column():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(12, 16)).astype(np.float32)
    x[:, 3] *= 100  # a channel of outliers
    params = {"w": jnp.asarray(rng.normal(size=(16, 4)).astype(np.float32))}
    q, _ = qjax.run(qjax.recipes.crossquant("int8_f32"), model, params, [jnp.asarray(x)])
    ours = jax.jit(qjax.quantized(model))(q, jnp.asarray(x))

    t, c = np.abs(x).max(1, keepdims=True).astype(np.float64), np.abs(x).max(0, keepdims=True).astype(np.float64)
    steps = {alpha: t**alpha * c ** (1 - alpha) / 127 for alpha in (0.15, 1.0)}
    rounded = {alpha: np.rint(x / step) * step for alpha, step in steps.items()}
    w = np.asarray(qjax.dequantize(qjax.quantize(params["w"], "int8_f32")), np.float64)
    np.testing.assert_allclose(ours, rounded[0.15] @ w, rtol=1e-4, atol=1e-3)
    # One scale a token is alpha = 1.
    tokens, _ = qjax.run(qjax.recipes.w8a8("int8_f32"), model, params, [jnp.asarray(x)])
    kernel = {alpha: np.mean(value == 0) for alpha, value in rounded.items()}
    assert kernel[0.15] < 0.5 * kernel[1.0]

    def error(leaves) -> float:
        return float(jnp.linalg.norm(qjax.quantized(model)(leaves, jnp.asarray(x)) - x @ np.asarray(params["w"])))

    assert error(q) < error(tokens)
