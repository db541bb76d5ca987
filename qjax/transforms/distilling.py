"""Scales of a quantized model learned end to end, codes as they are, towards what the float model predicts."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from qjax.metrics import kl_divergence
from qjax.operators import merge, trainable
from qjax.quantization import bits_per_weight
from qjax.reconstruct import minimize
from qjax.transforms.contract import Edit, Stage, Transform, stateless
from qjax.transforms.leaves import Core


def distill_scales(
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    distance: Callable[[jax.Array, jax.Array], jax.Array] = kl_divergence,
) -> Transform:
    """Learn the scales of the targets, which are quantized already, so that the model's outputs are the float model's.

    Minimizes the mean of `distance`(outputs, float outputs) over the calibration data, one batch a step; codes and zero
    points stay, so a weight costs as many bits as before. What is learned is a factor of each scale, in float32 and
    from 1 on, so that a rate means the same for all; the scale is read as what the product rounds to in its own type.
    Scales of less than 16 bits stay as well. `error_before` and `error_after` of the report are the mean distances,
    and a model that did not come nearer keeps its scales.

    With Kullback and Leibler's divergence of the predictions, the default, this is the continuous step of PV-Tuning
    (Malinovskii et al. 2024, arXiv:2405.14852; catalogue J19) on scales alone, as EfficientQAT's second phase trains
    them (Chen et al. 2024, arXiv:2407.11062).

    Raises:
        ValueError: a negative number of steps; targets without scales of 16 bits or more.
    """
    if steps < 0:
        raise ValueError(f"distill_scales: {steps} steps; give no negative number")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        quantized = {path: stage.params[path] for path in stage.targets}
        try:
            scales, rest = trainable(quantized, "scales")
        except ValueError as e:
            raise ValueError(
                f"distill_scales: none of {len(quantized)} targets has scales to learn; put a weight method in front"
            ) from e
        begun = jax.tree.map(lambda s: jnp.ones(s.shape, jnp.float32), scales)
        leaves, reference = tuple(stage.params.values()), tuple(stage.reference.values())
        order = tuple((i, path) for i, path in enumerate(stage.params) if path in quantized)
        found = minimize(
            _Apart(distance, order), stage.fn, begun, (scales, rest, leaves, reference), stage.inputs,
            optimizer=optimizer, steps=steps, key=key,
        )  # fmt: skip
        learned = merge(_scaled(scales, found.variables), rest)
        errors = {"error_before": float(found.before), "error_after": float(found.loss)}
        held = {path: Core.of(leaf, stage.uses[path]).matrix for path, leaf in learned.items()}
        return Edit(params=learned, rows={path: {**errors, "bits": bits_per_weight(q)} for path, q in held.items()})

    return stateless("distill_scales", "model", edit)


@dataclasses.dataclass(frozen=True)
class _Apart:
    """The loss of `distill_scales`. `order`: where among the leaves each target is."""

    distance: Callable[[jax.Array, jax.Array], jax.Array]
    order: tuple[tuple[int, str], ...]

    def __call__(self, fn: Any, variables: Any, constants: Any, item: Any, progress: jax.Array) -> jax.Array:
        del progress
        scales, rest, leaves, reference = constants
        learned = merge(_scaled(scales, variables), rest)
        now = list(leaves)
        for i, path in self.order:
            now[i] = learned[path]
        # The float model runs beside the other: its outputs for all batches would be a vocabulary for every token.
        return jnp.mean(self.distance(fn(tuple(now), item), jax.lax.stop_gradient(fn(reference, item))))


def _scaled(scales: Any, factors: Any) -> Any:
    return jax.tree.map(lambda s, f: (s.astype(jnp.float32) * f).astype(s.dtype), scales, factors)
