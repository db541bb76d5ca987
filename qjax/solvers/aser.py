"""ASER: outlier channels leave the quantized weight for the low-rank branch, whose rank follows the error's spectrum.

Zhao et al., "ASER: activation smoothing and error reconstruction for large language model quantization", 2024
(arXiv:2411.07762; catalogue F4). Of the channels the f with the largest mean|x|·mean|w| are the outliers; their inputs
are divided by m = mean|x| / (the least mean|x| among them), and of the scaled weight W diag(m) their rows are not
quantized at all: they belong to the error that a whitened low-rank term reconstructs.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax

from qjax.solvers import whitening
from qjax.solvers.whitening import Weighting


def outliers(size: Array, weight: Array, count: int) -> Array:
    """bool `[K]`: the `count` channels with the largest product of mean |x| `size [K]` and mean |w| `weight [K]`.

    The product does not change when a channel's input is divided by what its weight is multiplied with.
    """
    _, top = lax.top_k(size * weight, count)
    return jnp.zeros(size.shape, bool).at[top].set(True)


def smoothing(size: Array, chosen: Array) -> Array:
    """m `[K]`: what the chosen channels' inputs are divided by; 1 elsewhere and where an input is never active."""
    alive = chosen & (size > 0)
    least = jnp.min(jnp.where(alive, size, jnp.inf))
    return jnp.where(alive, size / least, 1.0)


def rank(error: Array, scale: Weighting, alpha: float) -> Array:
    """The least rank whose singular values of the weighted error `[K, N]` sum to more than `alpha` of all; int32.

    Raises:
        ValueError: alpha is not strictly between 0 and 1.
    """
    if not 0 < alpha < 1:
        raise ValueError(f"aser: alpha = {alpha} is a share of the singular values; give one between 0 and 1")
    s = jnp.linalg.svd(whitening.apply(scale, error), compute_uv=False)
    return jnp.sum(jnp.cumsum(s) <= alpha * jnp.sum(s), dtype=jnp.int32) + 1
