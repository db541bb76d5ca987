"""Quantization-aware training of the weights of a whole model: rounded in every forward pass, or layer after layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

from qjax.formats import Format, as_format
from qjax.operators import Latent, harden, straight_through
from qjax.qarray import QArray
from qjax.quantization import bits_per_weight, fake_quantize, quantize
from qjax.reconstruct import mean_loss, minimize
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.leaves import Core, refuse_quantized
from qjax.transforms.scaling import by_input


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
        cores = _float_cores(stage)
        leaves = tuple(
            cores[path].holding(straight_through(cores[path].matrix, f)).leaf() if path in cores else leaf
            for path, leaf in stage.params.items()
        )
        weights = tuple(latent.w.astype(jnp.float32) for latent in _latents(leaves))
        found = minimize(_loss, stage.loss, weights, leaves, stage.inputs, optimizer=optimizer, steps=steps, key=key)
        tuned = dict(zip(stage.params, harden(_with_weights(leaves, found.variables)), strict=True))
        row = {"format": f.name, "error_before": float(found.before), "error_after": float(found.loss)}
        return _edit(tuned, cores, row)

    return stateless(f"fine_tune {f.name}", "model", edit, Needs(loss=True))


def layer_by_layer(fmt: Format | str, *, optimizer: optax.GradientTransformation, steps: int) -> Transform:
    """Round the layers in the order of their use, and train those still in float on the loss after each.

    A layer is the leaves that read one value. Rounded ones stay as they are, so that what follows learns to live with
    them; the last layer is rounded without training. `steps` of the optimizer follow each layer, which begins anew, one
    batch a step. Where all this ends with a greater mean loss over the batches than rounding the weights as they were,
    these are rounded. `error_before` and `error_after` of the report are the two losses.

    Catalogue D16.

    Raises:
        ValueError: no loss, a negative number of steps, a leaf that is quantized already.
    """
    f = as_format(fmt)
    if steps < 0:
        raise ValueError(f"layer_by_layer: {steps} steps; give no negative number")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        cores = _float_cores(stage)
        order = [path for path in stage.params if path in cores]
        begun = {path: jnp.asarray(cores[path].matrix).astype(jnp.float32) for path in order}

        def leaves(weights: Mapping[str, jax.Array], rounded: Collection[str]) -> tuple[Any, ...]:
            return tuple(
                cores[path].holding(Latent(weights[path], jnp.asarray(path in rounded), InTurn(f))).leaf()
                if path in cores
                else leaf
                for path, leaf in stage.params.items()
            )

        def judged(weights: Mapping[str, jax.Array]) -> jax.Array:
            everything = leaves(weights, cores)
            return mean_loss(_loss, stage.loss, tuple(weights[path] for path in order), everything, stage.inputs)

        weights, rounded = begun, set[str]()
        *layers, _ = by_input(stage).values()
        for i, layer in enumerate(layers):
            rounded |= set(layer)
            found = minimize(
                _loss, stage.loss, tuple(weights[path] for path in order), leaves(weights, rounded), stage.inputs,
                optimizer=optimizer, steps=steps, key=jax.random.fold_in(key, i),
            )  # fmt: skip
            # What is rounded has no gradient; an optimizer that decays weights would move it all the same.
            trained = dict(zip(order, found.variables, strict=True))
            weights = {path: weights[path] if path in rounded else trained[path] for path in order}
        before, after = judged(begun), judged(weights)
        if not after < before:
            weights, after = begun, before
        tuned = dict(zip(stage.params, harden(leaves(weights, cores)), strict=True))
        return _edit(tuned, cores, {"format": f.name, "error_before": float(before), "error_after": float(after)})

    return stateless(f"layer_by_layer {f.name}", "model", edit, Needs(loss=True))


@dataclasses.dataclass(frozen=True)
class InTurn:
    """Rounded, and no longer trained, where theta (a bool scalar) says so; float until then."""

    format: Format

    def forward(self, w: jax.Array, theta: Any) -> jax.Array:
        rounded = fake_quantize(w, self.format, axis=-2, batch_axes=w.ndim - 2)
        return jnp.where(theta, jax.lax.stop_gradient(rounded), w)

    def harden(self, w: jax.Array, theta: Any) -> QArray:
        del theta
        return quantize(w, self.format, axis=-2, batch_axes=w.ndim - 2)


def _float_cores(stage: Stage) -> dict[str, Core]:
    """The cores of the targets; ValueError for one that is quantized already."""
    cores = {path: Core.of(stage.params[path], stage.uses[path]) for path in stage.targets}
    for path, core in cores.items():
        refuse_quantized(path, core.matrix)
    return cores


def _edit(tuned: Mapping[str, Any], cores: Mapping[str, Core], row: Mapping[str, Any]) -> Edit:
    held = {path: Core.of(tuned[path], core.use).matrix for path, core in cores.items()}
    return Edit(
        params={path: tuned[path] for path in cores},
        rows={path: {**row, "bits": bits_per_weight(q)} for path, q in held.items()},
    )


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
