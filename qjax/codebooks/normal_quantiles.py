"""NormalFloat: levels at quantiles of the normal distribution (QLoRA, arXiv:2305.14314, appendix E; catalogue A25)."""

from __future__ import annotations

from statistics import NormalDist

import numpy as np

# QLoRA's end point: the mean of the outermost probabilities of the two unequal halves, (1 - 1/30 + 1 - 1/32) / 2 as
# printed by its authors. The seven digits are theirs and are what makes the levels equal to bitsandbytes'.
OFFSET = 0.9677083


def normal_float(bits: int = 4, offset: float = OFFSET) -> tuple[float, ...]:
    """The 2^bits NormalFloat levels in [-1, 1] with an exact zero, as float32 values in ascending order.

    Half of the levels are quantiles above zero, half minus one below, and zero stands between.

    >>> levels = normal_float(4)
    >>> len(levels), levels[0], levels[7], levels[15]
    (16, -1.0, 0.0, 1.0)
    """
    if bits < 2:
        raise ValueError(f"NormalFloat needs at least 2 bits, got {bits}")
    half = 2 ** (bits - 1)
    quantile = NormalDist().inv_cdf
    above = [quantile(p) for p in _steps(offset, 0.5, half + 1)[:-1]]
    below = [-quantile(p) for p in _steps(offset, 0.5, half)[:-1]]
    levels = np.sort(np.array([*above, 0.0, *below], np.float32))
    return tuple(float(v) for v in levels / np.max(levels))


def _steps(start: float, stop: float, n: int) -> list[float]:
    """`n` evenly spaced float32 numbers, counted from the nearer end as the published levels were."""
    low, high = np.float32(start), np.float32(stop)
    step = np.float32((high - low) / np.float32(n - 1))
    return [float(low + step * np.float32(i) if i < n // 2 else high - step * np.float32(n - 1 - i)) for i in range(n)]
