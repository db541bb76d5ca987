"""Lloyd-Max: the levels of least mean squared error for a known density (Max, 1960; Lloyd, 1982; catalogue J1)."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from scipy import linalg, special

Function = Callable[[np.ndarray], np.ndarray]


class Density(NamedTuple):
    """A log-concave even density p as functions of x >= 0: p, its integral from x on, that of t p(t), its end."""

    pdf: Function
    tail: Function
    moment: Function
    end: float


def _normal() -> Density:
    def pdf(x: np.ndarray) -> np.ndarray:
        return np.exp(-x * x / 2) / math.sqrt(2 * math.pi)

    return Density(pdf, lambda x: special.ndtr(-x), pdf, 12.0)


def _laplace() -> Density:
    rate = math.sqrt(2)
    return Density(
        lambda x: rate / 2 * np.exp(-rate * x),
        lambda x: np.exp(-rate * x) / 2,
        lambda x: (x + 1 / rate) / 2 * np.exp(-rate * x),
        50.0,
    )


def _beta(dimension: int) -> Density:
    if dimension < 3:
        raise ValueError(
            f"a coordinate of a unit vector has a log-concave density from dimension 3 on, got {dimension}"
        )
    a = (dimension - 1) / 2
    unit = math.exp(-special.betaln(a, a) - (2 * a - 1) * math.log(2))
    return Density(
        lambda x: unit * (1 - x * x) ** (a - 1),
        lambda x: special.betainc(a, a, (1 - x) / 2),
        lambda x: unit * (1 - x * x) ** a / (2 * a),
        1.0,
    )


def _density(name: str) -> Density:
    if name.startswith("beta") and name[4:].isdigit():
        return _beta(int(name[4:]))
    known = {"normal": _normal, "laplace": _laplace}
    if name not in known:
        raise ValueError(f"density {name!r} is none of {', '.join(known)}, beta<dimension>")
    return known[name]()


@functools.cache
def lloyd_max(count: int, density: str) -> tuple[float, ...]:
    """The `count` levels, ascending, that are the means of their cells; the cells' edges lie halfway between them.

    density : "normal" or "laplace", of variance 1; or "beta128": a coordinate of a random unit vector of 128 (from 3
              on), p(x) ~ (1 - x^2)^((128 - 3)/2) on [-1, 1], a shifted Beta density. In a format, the scale is then the
              deviation of the values, or the norm of the vector.

    Newton's method from Panter and Dite's asymptotic levels; for a log-concave density no other solution is symmetric.

    >>> [round(v, 4) for v in lloyd_max(4, "normal")]
    [-1.5104, -0.4528, 0.4528, 1.5104]
    """
    if not 2 <= count <= 256:
        raise ValueError(f"lloyd_max makes 2 to 256 levels, got {count}")
    half = _positive(_density(density), count).astype(np.float32)
    return tuple(float(v) for v in [*-half[::-1], *[0.0] * (count % 2), *half])


def _positive(p: Density, count: int) -> np.ndarray:
    """The levels above zero."""
    x = np.linspace(0, p.end, 100001)
    share = np.cumsum(p.pdf(x) ** (1 / 3))
    odd = count % 2
    levels = np.interp((np.arange(count // 2) + (1 + odd) / 2) / (count / 2) * share[-1], share, x)
    for _ in range(100):
        # Below the first level ends zero's cell, or the mirrored level's at zero, which does not move.
        edge = np.append(levels[0] / 2 * odd, (levels[:-1] + levels[1:]) / 2)
        mass = -np.diff(p.tail(edge), append=0.0)
        mean = -np.diff(p.moment(edge), append=0.0) / mass
        by_lower = p.pdf(edge) * (mean - edge) / mass / 2
        by_upper = np.append(p.pdf(edge[1:]) * (edge[1:] - mean[:-1]) / mass[:-1] / 2, 0.0)
        diagonal = 1 - by_upper - by_lower
        diagonal[0] += by_lower[0] * (1 - odd)
        band = [np.append(0.0, -by_upper[:-1]), diagonal, np.append(-by_lower[1:], 0.0)]
        change = linalg.solve_banded((1, 1), np.array(band), mean - levels)
        levels = levels + change
        if np.max(np.abs(change)) < 1e-12 * levels[-1]:
            return levels
    raise ArithmeticError(f"Lloyd-Max did not settle for {count} levels")
