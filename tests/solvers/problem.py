"""One small layer for all solvers: a weight, inputs of unequal size that hang together, and a quantized copy of them.

All tests share its shape, so that what one compiles serves the others.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

K, N, GROUP = 32, 8, 16
FORMAT = "int3_g16_f32"


def inputs(seed: int = 0, rows: int = K) -> tuple[np.ndarray, np.ndarray]:
    """Inputs [tokens, K] of a layer in the quantized and in the float network, float64."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(4 * rows, rows)) @ (np.eye(rows) + 0.3 * rng.normal(size=(rows, rows)) / np.sqrt(rows))
    x = x * np.exp(0.5 * rng.normal(size=rows)) + rng.normal(size=(4 * rows, 1))
    return x, x + 0.2 * rng.normal(size=x.shape) * np.abs(x)


def weight(seed: int = 0, rows: int = K, columns: int = N) -> np.ndarray:
    return np.random.default_rng(100 + seed).normal(size=(rows, columns)).astype(np.float32)


def gram(seed: int = 0, rows: int = K) -> np.ndarray:
    x, _ = inputs(seed, rows)
    return (x.T @ x).astype(np.float32)


def cross(seed: int = 0, rows: int = K) -> np.ndarray:
    x, x_float = inputs(seed, rows)
    return (x.T @ x_float).astype(np.float32)


def given(seed: int = 0) -> tuple[jnp.ndarray, jnp.ndarray]:
    return jnp.asarray(weight(seed)), jnp.asarray(gram(seed))
