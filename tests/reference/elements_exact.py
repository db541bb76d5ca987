"""Independent numpy oracles for elements: exact rational arithmetic on lists of values, no bit tricks."""

from __future__ import annotations

from fractions import Fraction

import numpy as np


def nearest_codes(values: np.ndarray, even: np.ndarray, x: np.ndarray) -> np.ndarray:
    """Index into ascending finite `values` nearest to each x; a tie goes to the index where `even`; saturates."""
    exact = [Fraction(float(v)) for v in values]
    out = []
    for number in np.asarray(x, np.float64):
        if np.isinf(number):
            out.append(len(exact) - 1 if number > 0 else 0)
            continue
        target = Fraction(float(number))
        right = int(np.searchsorted(values.astype(np.float64), float(number)))
        if right == 0 or right == len(exact):
            out.append(min(right, len(exact) - 1))
            continue
        low, high = target - exact[right - 1], exact[right] - target
        out.append(right if high < low or (high == low and even[right]) else right - 1)
    return np.array(out)


def probes(levels: np.ndarray) -> np.ndarray:
    """Every level, every midpoint, and both float32 neighbours of each, with signs, zeros, extremes and infinities."""
    levels = np.asarray(levels, np.float64)
    points = np.concatenate([levels, (levels[1:] + levels[:-1]) / 2]).astype(np.float32)
    around = [points, np.nextafter(points, np.float32(np.inf)), np.nextafter(points, np.float32(-np.inf))]
    big = np.float32(3.4e38)
    extra = np.float32([0.0, -0.0, 1e-30, -1e-30, big, -big, np.inf, -np.inf, 1.5 * levels[-1], 1.01 * levels[-1]])
    x = np.concatenate([*around, -np.concatenate(around), extra])
    # XLA flushes float32 subnormals to zero: they are no input anyone can rely on.
    return x[(np.abs(x) >= np.finfo(np.float32).tiny) | (x == 0)].astype(np.float32)
