"""Quantization-aware training of the weights of a whole model, rounded in every forward pass."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax

from qjax.formats import Format, as_format
from qjax.operators import Latent, harden, straight_through
from qjax.quantization import bits_per_weight
from qjax.reconstruct import minimize
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.leaves import Core, refuse_quantized


def fine_tune(fmt: Format | str, *, optimizer: optax.GradientTransformation, steps: int) -> Transform:
    """Train the targets on the loss given to `run`, each rounded to a format in the forward pass, then round them.

    From the weights as they are, with the gradient passed straight through (arXiv:1308.3432); the scales follow the
    weights. What already stands in front of a weight is part of the model: `act_quantize` before this trains under
    rounded inputs. Each step reads one batch; where training ends with a greater mean loss over the batches than it
    began with, the weights of the beginning are rounded.

    Catalogue B22.

    Raises:
        ValueError: no loss, a negative number of steps, a leaf that is quantized already.
    """
    f = as_format(fmt)
    if steps < 0:
        raise ValueError(f"fine_tune: {steps} steps; give no negative number")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        if stage.loss is None:
            raise ValueError("fine_tune: there is nothing to train on; give run(loss=...)")
        cores = {path: Core.of(stage.params[path], stage.uses[path]) for path in stage.targets}
        for path, core in cores.items():
            refuse_quantized(path, core.matrix)
        leaves = tuple(
            cores[path].holding(straight_through(cores[path].matrix, f)).leaf() if path in cores else leaf
            for path, leaf in stage.params.items()
        )
        weights = tuple(latent.w.astype(jnp.float32) for latent in _latents(leaves))
        found = minimize(_loss, stage.loss, weights, leaves, stage.inputs, optimizer=optimizer, steps=steps, key=key)
        tuned = dict(zip(stage.params, harden(_with_weights(leaves, found.variables)), strict=True))
        row = {"format": f.name, "error_before": float(found.before), "error_after": float(found.loss)}
        held = {path: Core.of(tuned[path], stage.uses[path]).matrix for path in cores}
        return Edit(
            params={path: tuned[path] for path in cores},
            rows={path: {**row, "bits": bits_per_weight(q)} for path, q in held.items()},
        )

    return stateless(f"fine_tune {f.name}", "model", edit, Needs(loss=True))


def _loss(loss: Any, weights: Any, leaves: Any, item: Any, progress: jax.Array) -> jax.Array:
    del progress
    return loss(_with_weights(leaves, weights), item)


def _latents(leaves: Any) -> list[Latent]:
    return [x for x in jax.tree.leaves(leaves, is_leaf=_is_latent) if isinstance(x, Latent)]


def _with_weights(leaves: Any, weights: tuple[jax.Array, ...]) -> Any:
    """The leaves with other numbers in their latent weights, in order, in the type they had."""
    left = iter(weights)

    def swap(node: Any) -> Any:
        return dataclasses.replace(node, w=next(left).astype(node.w.dtype)) if isinstance(node, Latent) else node

    return jax.tree.map(swap, leaves, is_leaf=_is_latent)


def _is_latent(x: Any) -> bool:
    return isinstance(x, Latent)
