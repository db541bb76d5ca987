"""Distilled data: inputs made from what a network remembers of its training data (catalogue B17)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax import Array

from qjax.reconstruct.engine import Minimum, minimize

Moments = Sequence[tuple[Array, Array]]
Measure = Callable[[Any, Array], Sequence[Array]]


def distill(
    measure: Measure,
    params: Any,
    x: Array,
    moments: Moments,
    *,
    optimizer: optax.GradientTransformation | None = None,
    steps: int = 500,
    key: Array,
) -> Minimum:
    """Inputs whose activations have the given means and deviations, found by gradient descent from `x`.

    Minimizes the sum over layers of |mean - mu|^2 + |std - sigma|^2, mean and std of each channel over all other axes
    (eq. 3 of the paper; the authors' code takes each image for itself, over its pixels). They stand in for calibration
    data, for ranges and for sensitivities.

    Args:
        measure: static; (params, x) -> the activations [..., channels] of the layers whose moments are known, such as
            what enters each batch norm, and x itself.
        params: what `measure` reads.
        x: where to begin, float; in the paper normal numbers.
        moments: (mu, sigma) [channels] of each activation: a batch norm's running mean, and root of its variance.
        optimizer: Adam at rate 0.5 if None, as the authors.
        steps: number of updates; 500 in the paper.
        key: not used by the descent itself; the engine asks for one.

    Returns:
        `variables`: the inputs; `loss` and `before`.

    Raises:
        ValueError: moments that do not fit the activations.

    Source: Cai et al., "ZeroQ: a novel zero shot quantization framework", CVPR 2020 (arXiv:2001.00281), section 3.1.

    >>> x = jax.random.normal(jax.random.key(0), (64, 2))
    >>> wanted = [(jnp.array([3.0, -1.0]), jnp.array([0.5, 2.0]))]
    >>> found = distill(lambda params, x: [x], (), x, wanted, key=jax.random.key(1)).variables
    >>> jnp.mean(found, 0).round(2).tolist(), jnp.std(found, 0).round(2).tolist()
    ([3.0, -1.0], [0.5, 2.0])
    """
    shapes = jax.eval_shape(measure, params, x)
    widths, known = [a.shape[-1:] for a in shapes], [jnp.shape(m) for pair in moments for m in pair]
    if known != [w for width in widths for w in (width, width)]:
        raise ValueError(f"distill: activations of {widths} channels and moments of shapes {known}; give two for each")
    optimizer = optax.adam(0.5) if optimizer is None else optimizer
    loss = _Apart(measure)
    return minimize(loss, None, x, (params, tuple(moments)), [()], optimizer=optimizer, steps=steps, key=key)


@dataclasses.dataclass(frozen=True)
class _Apart:
    """The loss of `distill`."""

    measure: Measure

    def __call__(self, fn: Hashable, x: Array, constants: Any, item: Any, progress: Array) -> Array:
        del fn, item, progress
        params, moments = constants
        total = jnp.float32(0)
        for a, (mean, std) in zip(self.measure(params, x), moments, strict=True):
            rows = a.astype(jnp.float32).reshape(-1, a.shape[-1])
            center = jnp.mean(rows, axis=0)
            # The root of a variance of zero has no gradient; the authors add 1e-6 too.
            spread = jnp.sqrt(jnp.var(rows, axis=0) + 1e-6)
            total += jnp.sum((center - mean) ** 2) + jnp.sum((spread - std) ** 2)
        return total
