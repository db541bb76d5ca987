"""AbnormalFloat: levels of least expected |error| for normal weights under an absmax scale (catalogue A26).

Yoshida, "NF4 isn't information theoretically optimal (and that's good)", 2023 (arXiv:2306.06965): in blocks of `block`
weights divided by their largest magnitude, the values are no longer normal, and their distribution depends on `block`.
"""

from __future__ import annotations

import functools

import numpy as np
from scipy import special


@functools.cache
def abnormal_float(block: int, bits: int = 4) -> tuple[float, ...]:
    """The 2^bits levels in [-1, 1] with exact -1, 0 and 1, ascending; published for 4 bits and blocks of 64.

    Half of the levels lie above zero, half minus one below, as in NormalFloat. Each of the two sides is least in
    E|x - level(x)|: but for the ends a level is the median of its cell, whose edges lie halfway to its neighbours, or
    at zero. The level zero itself is set apart from them.

    >>> abnormal_float(64)[8:10]
    (0.04273..., 0.12934...)
    """
    if bits < 2 or block < 2:
        raise ValueError(f"AbnormalFloat needs at least 2 bits and blocks of at least 2, got {bits} and {block}")
    half, cdf = 2 ** (bits - 1), _cdf(block)
    below = -_half(cdf, half - 1)[::-1]
    return tuple(float(np.float32(v)) for v in [*below, 0.0, *_half(cdf, half)])


def _half(cdf: tuple[np.ndarray, np.ndarray], count: int) -> np.ndarray:
    """`count` levels above zero, the last of them 1, the others medians of their cells."""
    x, p = cdf
    levels = np.linspace(0, 1, count + 1)[1:]
    for _ in range(10000):
        edges = np.interp(np.concatenate([[0.0], (levels[:-1] + levels[1:]) / 2]), x, p)
        new = np.interp((edges[:-1] + edges[1:]) / 2, p, x)
        moved = np.max(np.abs(new - levels[:-1]), initial=0.0)
        levels[:-1] = new
        if moved < 1e-10:
            return levels
    raise ArithmeticError(f"the medians of {count} cells did not settle")


def _cdf(block: int) -> tuple[np.ndarray, np.ndarray]:
    """The distribution function of w / max|w| on [0, 1], of the values that are not the maximum itself.

    Given the maximum m of the magnitudes the others are normal and cut at m; m has the distribution function
    (2 Phi(m) - 1)^block. Medians within [0, 1) do not see the mass of the maxima at 1.
    """
    x = np.linspace(0, 1, 4097)
    nodes, weights = np.polynomial.legendre.leggauss(128)
    m = 6 * (nodes + 1)  # beyond 12 standard deviations there is nothing
    inside = 2 * special.ndtr(m) - 1
    density = block * inside ** (block - 1) * 2 * np.exp(-m * m / 2) / np.sqrt(2 * np.pi)
    share = (special.ndtr(x[:, None] * m) - 0.5) / inside
    return x, share @ (6 * weights * density)
