"""Half-wave Gaussian quantization: the best even grid for max(0, N(0, sigma^2)), and its gradients (catalogue B13).

Cai et al., "Deep learning with low precision by half-wave Gaussian quantization", CVPR 2017 (arXiv:1702.00953).
Pre-activations behind a batch norm are normal with sigma 1, so that one grid serves every layer.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from scipy import special

from qjax.formats.elements import Element
from qjax.formats.format import Format
from qjax.ranges.moments import integer, mean, relative, root, within
from qjax.ranges.range import Project
from qjax.ranges.reductions import ends

Tail = Literal["relu", "clipped", "log"]


@functools.cache
def half_wave_step(levels: int) -> float:
    """The step s of the grid 0, s, ..., levels*s with the least mean squared error for max(0, N(0, 1)).

    Zero stands for zero alone: every positive value gets a positive level (eq. 12, t_1 = 0).

    >>> [round(half_wave_step(2**bits - 1), 3) for bits in (1, 2, 3)]
    [0.798, 0.539, 0.322]
    """
    k = np.arange(1, levels + 1)

    def descent(step: float) -> float:
        """Half the derivative of the error, downhill positive: sum k (E[x; cell k] - k step P(cell k))."""
        cut = np.concatenate([[0.0], (k[:-1] + 0.5) * step, [np.inf]])
        mass, first = np.diff(special.ndtr(cut)), np.diff(-np.exp(-cut * cut / 2) / math.sqrt(2 * math.pi))
        return float(np.sum(k * (first - k * step * mass)))

    return root(descent, 0.1 / levels, 10 / levels)


@dataclass(frozen=True)
class half_wave:
    """[0, levels * step * sigma] of each block, within its values; for an unsigned integer, or one with a zero point.

    `sigma` is that of the Gaussian before the rectifier: 1 behind a batch norm; None estimates sqrt(2 E[x^2]).
    """

    sigma: float | None = None

    def __post_init__(self) -> None:
        if self.sigma is not None and not 0 < self.sigma < float("inf"):
            raise ValueError(f"half_wave: sigma must be a positive number, got {self.sigma}")

    def __call__(
        self, x: Array, axes: tuple[int, ...], fmt: Format, project: Project, weights: Array | None = None
    ) -> tuple[Array, Array]:
        element = integer("half_wave", fmt)
        if element.min < 0:
            raise ValueError(f"half_wave is for rectified values and an unsigned element, not for {fmt.name}")
        levels = int(element.max)
        _, reach = ends(x, axes)
        if self.sigma is None:
            positive = jnp.maximum(relative(x, reach), jnp.float32(0))
            sigma = jnp.sqrt(2 * mean(positive * positive, axes, weights)) * reach
        else:
            sigma = jnp.full(reach.shape, self.sigma, jnp.float32)
        high = within(jnp.float32(levels * half_wave_step(levels)) * sigma, jnp.maximum(reach, jnp.float32(0)))
        return jnp.zeros_like(high), high


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def half_wave_quantize(x: Array, scale: Array, element: Element, tail: Tail = "clipped") -> Array:
    """Positive x to the nearest positive value of `element` times `scale`, the rest to zero, with surrogate gradients.

    With q = scale*element.max the derivative in x is 1 on (0, q]; beyond q it is 1 ("relu"), 0 ("clipped") or
    1 / (x - q + 1) ("log"; section 4 of the paper). `scale` (float32, broadcasts against float32 `x`) has no gradient.

    >>> from qjax.formats import Int
    >>> step = jnp.float32([half_wave_step(3)])
    >>> loss = lambda x: half_wave_quantize(x, step, Int(2, signed=False)).sum()
    >>> jax.grad(loss)(jnp.array([-1.0, 1.0, 2.5])).tolist()
    [0.0, 1.0, 0.0]
    """
    if tail not in ("relu", "clipped", "log"):
        raise ValueError(f"half_wave_quantize: tail {tail!r} is none of relu, clipped, log")
    levels = element.levels()
    value = jnp.maximum(element.round(x / scale), jnp.float32(levels[levels > 0][0]))
    return jnp.where(x > 0, scale * value, jnp.zeros_like(x))


def _forward(x: Array, scale: Array, element: Element, tail: Tail) -> tuple[Array, tuple[Array, Array]]:
    return half_wave_quantize(x, scale, element, tail), (x, scale)


def _backward(element: Element, tail: Tail, kept: tuple[Array, Array], g: Array) -> tuple[Array, Array]:
    x, scale = kept
    top = jnp.broadcast_to(scale * jnp.float32(element.max), x.shape)
    beyond = {"relu": jnp.ones_like(x), "clipped": jnp.zeros_like(x), "log": 1 / jnp.maximum(x - top + 1, 1)}[tail]
    slope = jnp.where(x <= 0, jnp.zeros_like(x), jnp.where(x <= top, jnp.ones_like(x), beyond))
    return g * slope, jnp.zeros_like(scale)


half_wave_quantize.defvjp(_forward, _backward)
