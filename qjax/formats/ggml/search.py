"""How ggml looks for the scale of a block: three searches by weighted least squares, and two descents code by code.

Every function takes the elements of a block along the leading axis and works on all blocks at once. Rounding follows
ggml's: sums run over the elements in their order, and every product is rounded before it is added, so that results
equal those of the C loops bit for bit. Own code after make_qx_quants, make_qkx2_quants, make_qkx3_quants,
make_q3_quants, make_qp_quants and quantize_row_iq4_nl_impl of ggml-quants.c (catalogue U2, U3).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from qjax.formats.rules import rounded

EPSILON = 1e-15
"""Blocks of smaller numbers are zero to ggml."""


def cut(x: Array, size: int) -> Array:
    """The elements of blocks [n, blocks...] in sub-blocks, [size, n / size, blocks...]."""
    return jnp.swapaxes(x.reshape(-1, size, *x.shape[1:]), 0, 1)


def joined(x: Array) -> Array:
    """The inverse of `cut`."""
    return jnp.swapaxes(x, 0, 1).reshape(-1, *x.shape[2:])


def sums(terms: Callable[..., tuple[Array, ...]], *rows: Array) -> tuple[Array, ...]:
    """The sums of each of `terms(*row)` over the leading axis of `rows`, from the first row to the last."""

    def add(totals: tuple[Array, ...], row: tuple[Array, ...]) -> tuple[tuple[Array, ...], None]:
        return tuple(total + rounded(term) for total, term in zip(totals, terms(*row), strict=True)), None

    shapes = jax.eval_shape(terms, *(row[0] for row in rows))
    return lax.scan(add, tuple(jnp.zeros(s.shape, s.dtype) for s in shapes), rows)[0]


def largest(x: Array) -> Array:
    """The number of largest size, sign kept; of equal sizes the first."""

    def larger(best: Array, x: Array) -> tuple[Array, None]:
        return jnp.where(jnp.abs(x) > jnp.abs(best), x, best), None

    return lax.scan(larger, jnp.zeros_like(x[0]), x)[0]


def extremes(x: Array) -> tuple[Array, Array]:
    """The least and the greatest number; of two zeros the first."""

    def widen(ends: tuple[Array, Array], x: Array) -> tuple[tuple[Array, Array], None]:
        low, high = ends
        return (jnp.where(x < low, x, low), jnp.where(x > high, x, high)), None

    return lax.scan(widen, (x[0], x[0]), x)[0]


def symmetric(x: Array, weight: Array, top: int) -> tuple[Array, Array]:
    """The scale s and codes q in -top..top-1 for which the weighted error of s*q is least, of 19 roundings tried.

    x, weight [n, blocks...] -> scale [blocks...], codes [n, blocks...] as float32.
    """
    peak = largest(x)

    def nearest(y: Array) -> Array:
        return jnp.clip(jnp.round(y), jnp.float32(-top), jnp.float32(top - 1))

    tries = -(np.float32(top) + np.float32(0.1) * np.array([i for i in range(-9, 10) if i], np.float32))
    scale, inverse = _best_scale(x, weight, jnp.float32(-top) / peak, tries, peak, nearest, lambda w, x, q: w * x * q)
    empty = jnp.abs(peak) < EPSILON
    codes = jnp.where(empty[None], jnp.float32(-top), nearest(x * inverse[None]))
    return jnp.where(empty, jnp.float32(0), scale), codes


def tabulated(x: Array, weight: Array, values: np.ndarray, tries: int = 7) -> Array:
    """The scale [blocks...] under which the levels `values` (ascending) fit best, of 2*tries + 2 roundings tried."""
    peak, lowest = largest(x), np.float32(values[0])

    def nearest(y: Array) -> Array:
        return lowest + _climbed(values, y, np.diff(values))

    steps = np.arange(-tries, tries + 1, dtype=np.float32) + lowest
    first = jnp.float32(1) / rounded(-peak / lowest)
    scale, _ = _best_scale(x, weight, first, steps, peak, nearest, lambda w, x, q: w * q * x)
    return jnp.where(jnp.abs(peak) < EPSILON, jnp.float32(0), scale)


def nearest_index(values: np.ndarray, y: Array) -> Array:
    """Index of the nearest of ascending `values`; halfway goes to the upper one."""
    return _climbed(values, y, np.ones(len(values) - 1)).astype(jnp.int32)


def _climbed(values: np.ndarray, y: Array, steps: np.ndarray) -> Array:
    """The sum of those `steps` (integers) between values that `y` has climbed: compares vectorize, gathers do not."""
    total = jnp.zeros_like(y)
    for middle, step in zip((values[:-1] + values[1:]) / 2, steps, strict=True):
        total = total + jnp.where(y >= np.float32(middle), np.float32(step), np.float32(0))
    return total


def _best_scale(
    x: Array,
    weight: Array,
    first: Array,
    tries: np.ndarray,
    peak: Array,
    nearest: Callable[[Array], Array],
    product: Callable[[Array, Array, Array], Array],
) -> tuple[Array, Array]:
    """Least squares scale of the rounding nearest(x * inverse), over inverse = `first` and all of `tries` / peak.

    For given codes q the best scale is sum(w x q) / sum(w q q), and the error it leaves is smaller the larger
    sum(w x q)^2 / sum(w q q) is.
    """

    def moments(inverse: Array) -> tuple[Array, ...]:
        def terms(x: Array, w: Array) -> tuple[Array, ...]:
            q = nearest(inverse * x)
            return product(w, x, q), w * q * q

        return sums(terms, x, weight)

    def attempt(best: tuple[Array, ...], numerator: Array) -> tuple[tuple[Array, ...], None]:
        score, scale, chosen = best
        inverse = numerator / peak
        xq, qq = moments(inverse)
        better = (qq > 0) & (xq * xq > score * qq)
        new = xq / qq
        return tuple(
            jnp.where(better, a, b) for a, b in zip((new * xq, new, inverse), (score, scale, chosen), strict=True)
        ), None

    xq, qq = moments(first)
    scale = jnp.where(qq != 0, xq / qq, jnp.float32(0))
    (_, scale, inverse), _ = lax.scan(attempt, (scale * xq, scale, first), jnp.asarray(tries))
    return scale, inverse


def affine(
    x: Array, weight: Array, top: int, start: float, step: float, count: int, absolute: bool = False
) -> tuple[Array, Array, Array]:
    """Scale s, minimum m <= 0 and codes q in 0..top for which the weighted error of s*q + m is least.

    `count + 1` roundings are tried, of the range found so far cut into top + start, top + start + step, ... steps; for
    each, scale and minimum by least squares. `absolute` weighs |error| instead of its square.

    x, weight [n, blocks...] -> scale, minimum [blocks...], codes [n, blocks...] as float32.
    """
    low, high = extremes(x)
    low = jnp.where(low > 0, jnp.float32(0), low)
    w_sum, x_sum = sums(lambda x, w: (w, w * x), x, weight)

    def nearest(x: Array, inverse: Array, low: Array) -> Array:
        y = inverse * (x - low)
        return jnp.where(y > 0, jnp.round(jnp.minimum(y, jnp.float32(top))), jnp.float32(0))

    def error(scale: Array, low: Array, q: Callable[[Array], Array]) -> Array:
        def term(x: Array, w: Array) -> tuple[Array]:
            miss = rounded(scale * q(x)) + low - x
            return (w * (jnp.abs(miss) if absolute else miss * miss),)

        return sums(term, x, weight)[0]

    def attempt(best: tuple[Array, ...], steps: Array) -> tuple[tuple[Array, ...], None]:
        least, _, low = best[:3]
        inverse = steps / (high - low)

        def terms(x: Array, w: Array) -> tuple[Array, ...]:
            q = nearest(x, inverse, low)
            return w * q, w * q * q, w * q * x

        q_sum, qq_sum, xq_sum = sums(terms, x, weight)
        det = rounded(w_sum * qq_sum) - rounded(q_sum * q_sum)
        scale = (rounded(w_sum * xq_sum) - rounded(x_sum * q_sum)) / det
        new = (rounded(qq_sum * x_sum) - rounded(q_sum * xq_sum)) / det
        scale, new = jnp.where(new > 0, xq_sum / qq_sum, scale), jnp.minimum(new, jnp.float32(0))
        found = error(scale, new, lambda x: nearest(x, inverse, low))
        better = (det > 0) & (found < least)
        return tuple(
            jnp.where(better, a, b) for a, b in zip((found, scale, new, inverse, low), best, strict=True)
        ), None

    inverse = jnp.float32(top) / (high - low)
    scale = jnp.float32(1) / rounded(inverse)
    least = error(scale, low, lambda x: nearest(x, inverse, low))
    steps = np.float32(start) + np.float32(step) * np.arange(count + 1, dtype=np.float32) + np.float32(top)
    (_, scale, minimum, inverse, origin), _ = lax.scan(attempt, (least, scale, low, inverse, low), jnp.asarray(steps))
    flat = high <= low
    codes = jnp.where(flat[None], jnp.float32(0), nearest(x, inverse[None], origin[None]))
    return jnp.where(flat, jnp.float32(0), scale), jnp.where(flat, low, minimum), codes


def descent(x: Array, top: int) -> tuple[Array, Array]:
    """Scale and codes in -top..top-1 of `x` [n, blocks...] weighted by its squares: rounded, then improved singly."""
    peak = largest(x)
    inverse, low, high = jnp.float32(-top) / peak, jnp.float32(-top), jnp.float32(top - 1)
    codes = jnp.clip(jnp.round(inverse[None] * x), low, high)
    empty = jnp.abs(peak) < EPSILON
    scale, codes = _descend(x, x * x, codes, low, high)
    return jnp.where(empty, jnp.float32(0), scale), jnp.where(empty[None], low, codes)


def positive(x: Array, weight: Array, top: int) -> tuple[Array, Array]:
    """Scale and codes in 0..top of `x` >= 0 [n, blocks...]: the best of nine roundings, then improved singly."""
    peak, limit = jnp.max(x, axis=0), jnp.float32(top)

    def nearest(x: Array, inverse: Array) -> Array:
        return jnp.minimum(jnp.round(inverse * x), limit)

    def error(inverse: Array) -> Array:
        scale = jnp.float32(1) / rounded(inverse)

        def term(x: Array, w: Array) -> tuple[Array]:
            miss = x - rounded(scale * nearest(x, inverse))
            return (w * miss * miss,)

        return sums(term, x, weight)[0]

    def attempt(best: tuple[Array, Array], numerator: Array) -> tuple[tuple[Array, Array], None]:
        inverse = numerator / peak
        found = error(inverse)
        return (jnp.where(found < best[0], found, best[0]), jnp.where(found < best[0], inverse, best[1])), None

    tries = np.float32(0.1) * np.array([i for i in range(-4, 5) if i], np.float32) + np.float32(top)
    first = limit / peak
    (_, inverse), _ = lax.scan(attempt, (error(first), first), jnp.asarray(tries))
    scale, codes = _descend(x, weight, nearest(x, inverse[None]), jnp.float32(0), limit)
    empty = peak < EPSILON
    return jnp.where(empty, jnp.float32(0), scale), jnp.where(empty[None], jnp.float32(0), codes)


def _descend(x: Array, weight: Array, codes: Array, low: Array, high: Array) -> tuple[Array, Array]:
    """Five times through the elements: each takes the code that is best beside the others if that lessens the error."""
    xq, qq = sums(lambda x, w, q: (w * x * q, w * q * q), x, weight, codes)

    def improve(totals: tuple[Array, Array], element: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        xq, qq = totals
        x, w, q = element
        xq_rest, qq_rest = xq - rounded(w * x * q), qq - rounded(w * q * q)
        new = jnp.clip(jnp.round(x * qq_rest / xq_rest), low, high)
        xq_new, qq_new = xq_rest + rounded(w * x * new), qq_rest + rounded(w * new * new)
        better = (xq_rest > 0) & (qq_rest > 0) & (new != q) & (xq_new * xq_new * qq > xq * xq * qq_new)
        return (jnp.where(better, xq_new, xq), jnp.where(better, qq_new, qq)), jnp.where(better, new, q)

    def sweep(_: Array, state: tuple[tuple[Array, Array], Array]) -> tuple[tuple[Array, Array], Array]:
        totals, codes = state
        return lax.scan(improve, totals, (x, weight, codes))

    (xq, qq), codes = lax.fori_loop(0, 5, sweep, ((xq, qq), codes))
    return jnp.where(qq > 0, xq / qq, jnp.float32(0)), codes
