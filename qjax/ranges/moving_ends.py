"""The moving average of batches' ranges (catalogue B2)."""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array, lax


def moving_average(ends: Array, rate: float = 0.01) -> Array:
    """m <- (1 - rate) m + rate e over the leading axis (batches) of `ends` [batches, ...], begun at the first.

    For the least and the largest value of each batch. The order of the batches counts, and cutting a batch in two
    changes the result: unlike the other summaries of calibration data it is no function of the values seen.
    `qjax.statistics.MovingAverage` carries it through a run.

    Raises ValueError for a rate outside (0, 1] and for no batches.

    >>> moving_average(jnp.array([1.0, 3.0, 3.0]), rate=0.5).tolist()
    2.5
    """
    if not 0 < rate <= 1:
        raise ValueError(f"moving_average: rate must lie in (0, 1], got {rate}")
    if not ends.ndim or not ends.shape[0]:
        raise ValueError(f"moving_average: no batches in an array of shape {ends.shape}")

    def step(mean: Array, end: Array) -> tuple[Array, None]:
        return jnp.float32(1 - rate) * mean + jnp.float32(rate) * end, None

    ends = ends.astype(jnp.float32)
    return lax.scan(step, ends[0], ends[1:])[0]
