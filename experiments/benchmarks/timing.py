"""Clocks that every benchmark shares."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def seconds(call: Callable[..., Any], *arguments: Any) -> float:
    """Wall time of one call until its results are there."""
    start = time.perf_counter()
    jax.block_until_ready(call(*arguments))
    return time.perf_counter() - start


def gemm_rate(size: int = 2048, repeats: int = 8) -> float:
    """GFLOP/s of float32 matrix products, the mean over `repeats`."""
    a = jnp.ones((size, size), jnp.float32)
    product = jax.jit(jnp.matmul)
    seconds(product, a, a)
    return 2 * size**3 * repeats / sum(seconds(product, a, a) for _ in range(repeats)) / 1e9
