"""Complex numbers as fourth roots of one, 1, i, -1 and -i: two bits a pair of real numbers (catalogue K40).

iFairy (Wang et al. 2025, arXiv:2508.05571), PhaseQuant: the nearest root by phase, and a scale each for the real and
the imaginary ones.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array


class FourthRoots(NamedTuple):
    """Codes k of i^k (uint8, two bits each: `formats.pack(codes, 2)`) and the scales (float32) of +-1 and of +-i."""

    codes: Array
    real: Array
    imaginary: Array


def to_fourth_roots(real: Array, imaginary: Array, axes: tuple[int, ...] | None = None) -> FourthRoots:
    """The complex numbers `real + i imaginary` (of one shape), sharing scales over `axes` (kept), all if None.

    The phases of root i^k are (k - 1/2) pi/2 <= phase < (k + 1/2) pi/2; zero is 1. A scale is the mean of |real| over
    the numbers that go to +-1, of |imaginary| over those that go to +-i, which is the one of least squares; 0 if none
    does. A NaN or an infinity shows in its scale.

    >>> roots = to_fourth_roots(jnp.array([3.0, 0.5, -1.0]), jnp.array([1.0, -2.0, 0.0]))
    >>> roots.codes.tolist(), roots.real.tolist(), roots.imaginary.tolist()
    ([0, 3, 2], [2.0], [2.0])
    """
    if real.shape != imaginary.shape:
        raise ValueError(f"real {real.shape} and imaginary {imaginary.shape} parts must have one shape")
    re, im = real.astype(jnp.float32), imaginary.astype(jnp.float32)
    up, left, down = (im >= re) & (im > -re), (im > re) & (im <= -re), (im <= re) & (im < -re)
    codes = jnp.where(up, 1, jnp.where(left, 2, jnp.where(down, 3, 0))).astype(jnp.uint8)
    odd = (codes & 1) == 1

    def mean(x: Array, there: Array) -> Array:
        count = jnp.sum(there, axis=axes, keepdims=True).astype(jnp.float32)
        return jnp.sum(jnp.where(there, jnp.abs(x), 0), axis=axes, keepdims=True) / jnp.maximum(count, 1)

    return FourthRoots(codes, mean(re, ~odd), mean(im, odd))


def from_fourth_roots(roots: FourthRoots) -> tuple[Array, Array]:
    """The real and imaginary parts (float32)."""
    sign = jnp.where(roots.codes >= 2, jnp.float32(-1), jnp.float32(1))
    odd = (roots.codes & 1) == 1
    return jnp.where(odd, 0, sign * roots.real), jnp.where(odd, sign * roots.imaginary, 0)
