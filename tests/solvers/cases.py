"""One layer as language models have it, and a format of every kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

K, N = 96, 24

# Integers with and without a zero point, a table with plain scales, both microscaling formats, and ternary values.
FORMATS = ("int4_g16", "int3_g32_affine", "nf4_g16_f32", "mxfp4", "nvfp4", "int2_g16_narrow")


def problem(seed: int = 0, tokens: int = 4 * K, dead: int | None = None) -> tuple[jnp.ndarray, jnp.ndarray]:
    """A weight `[K, N]` and inputs `[tokens, K]`: correlated, unequal, two channels far larger than the rest."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(tokens, 12)) @ rng.normal(size=(12, K)) / 3 + rng.normal(size=(tokens, K))
    x *= np.exp(0.5 * rng.normal(size=K))
    x[:, [7, 50]] *= 60.0
    if dead is not None:
        x[:, dead] = 0
    w = rng.standard_t(5, size=(K, N)) / 10
    return jnp.asarray(w, jnp.float32), jnp.asarray(x, jnp.float32)


def gram(x: jnp.ndarray) -> jnp.ndarray:
    """XᵀX, summed in float64."""
    wide = np.asarray(x, np.float64)
    return jnp.asarray(wide.T @ wide, jnp.float32)


def output_error(x: jnp.ndarray, error: jnp.ndarray) -> float:
    """‖XE‖² in float64, from the inputs themselves."""
    return float(np.sum((np.asarray(x, np.float64) @ np.asarray(error, np.float64)) ** 2))


def quick(fn: Callable[..., Any]) -> Callable[..., Any]:
    """`fn` jitted with as little optimization as XLA offers: on matrices this small, compilation is all the time."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(fn, compiler_options=options)
