"""Learned rounding as a transform: a rule of `qjax.reconstruct`, a loss on the output of a leaf, block or window."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax

from qjax.operators import Latent
from qjax.qarray import QArray
from qjax.quantization import bits_per_weight
from qjax.reconstruct import (
    Rule,
    mean_loss,
    minimize,
    sample_weights,
    squared_distance,
    weighted_squared_distance,
)
from qjax.reconstruct.distances import floating
from qjax.reconstruct.rule import latents, rule_of, settled, with_variables
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.leaves import Core, refuse_quantized, transport

Distance = Callable[[Any, Any], jax.Array]
Weighting = Literal["fisher", "label_free"]


def learn(
    rule: Rule,
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    scope: Literal["leaf", "block", "window"] = "block",
    window: int | None = 2,
    distance: Distance = squared_distance,
    weighting: Weighting | None = None,
) -> Transform:
    """Round each target by a learned rule (`AdaRound`, `SignRound`, `FlexRound`, `AdaQuant`, `LowRankUpdate`, ...).

    The variables of all targets of a stage are learned together, by `steps` of `optimizer`, so that what the stage
    gives on the quantized stream is near what the float model gives on its own. Rules start from rounding to nearest,
    and the stage keeps that where nothing better was found.

    Args:
        rule: how weights are rounded; it holds the format.
        optimizer: optax; the rules' variables are dictionaries of named arrays.
        steps: number of updates a stage, each on one calibration batch.
        scope: "leaf" minimizes tr(E^T H E) of one matrix from its Gram matrix H; "block" the error of a block's
            output; "window" that of `window` blocks in a row, a block being learned again in every window it is in.
        window: blocks in a window; None for all of the model as one.
        distance: (outputs, targets) -> scalar, for block and window.
        weighting: what the squared distance is weighted by, for block and window. "fisher": the squared slope of the
            loss given to `run` by each number, in the float model (BRECQ; catalogue D4). "label_free": one weight a
            sample and block, from the slopes of the model's outputs; a window then looks at what each of its blocks
            puts out, not at the last alone (EPTQ's sample-layer attention; catalogue D9).

    `error_before` and `error_after` of the report are relative output errors of the stage, with all its leaves rounded
    to nearest and as learned.

    Raises:
        ValueError: an unknown weighting, one of a leaf's loss or beside another distance; no loss to weight by; a leaf
            that is quantized already, by name.
    """
    if weighting not in (None, "fisher", "label_free"):
        raise ValueError(f"learn: weighting {weighting!r} is neither 'fisher' nor 'label_free'")
    if weighting and (scope == "leaf" or distance is not squared_distance):
        raise ValueError(f"learn: weighting {weighting!r} is of the squared distance of a block's or a window's output")
    if scope == "leaf":
        return stateless(_name(rule, scope), "leaf", _leafwise(rule, optimizer, steps), Needs(statistics=("gram",)))
    needs = Needs(
        streams=True,
        window=window if scope == "window" else 1,
        inner=scope == "window" and weighting == "label_free",
        sensitivity={"fisher": "loss", "label_free": "outputs", None: None}[weighting],
    )
    edit = _blockwise(rule, optimizer, steps, scope, distance, weighting)
    return stateless(_name(rule, scope) + (f" {weighting}" if weighting else ""), scope, edit, needs)


def _name(rule: Rule, scope: str) -> str:
    return f"{type(rule).__name__} {rule.format.name} {scope}"


def _leafwise(rule: Rule, optimizer: Any, steps: int) -> Callable[[Stage, jax.Array], Edit]:
    losses = _losses(_gram_error)

    def edit(stage: Stage, key: jax.Array) -> Edit:
        (path,) = stage.targets
        core, w = _float(path, stage, again=False)
        gram = transport(path, core.maps, stage.statistics[path])["gram"].astype(jnp.float32)
        latent = Latent(w, _begun(rule, w, key), rule)
        found, before = _learned(losses, None, (latent,), [gram], optimizer, steps, key)
        q = _hardened(latent, found.variables[0])
        return Edit(
            params={path: core.holding(q).leaf()},
            rows={path: _row(rule, q, before, found.loss, jnp.sum(w * (gram @ w)))},
        )

    return edit


def _blockwise(
    rule: Rule, optimizer: Any, steps: int, scope: str, distance: Distance, weighting: Weighting | None
) -> Callable[[Stage, jax.Array], Edit]:
    def error(fn: Any, leaves: Any, item: Any) -> jax.Array:
        x, want, weights = item
        y = fn(leaves, x)
        return distance(y, want) if weights is None else weighted_squared_distance(y, want, weights)

    losses = _losses(error)

    def edit(stage: Stage, key: jax.Array) -> Edit:
        cores = {path: _float(path, stage, again=scope == "window") for path in stage.targets}
        made = {
            path: Latent(w, _begun(rule, w, jax.random.fold_in(key, i)), rule)
            for i, (path, (_, w)) in enumerate(cores.items())
        }
        leaves = tuple(cores[p][0].holding(made[p]).leaf() if p in made else leaf for p, leaf in stage.params.items())
        weights: list[Any] = [None] * len(stage.inputs)
        if weighting is not None:
            weights = [s if weighting == "fisher" else sample_weights(s) for s in stage.sensitivities]
        items = list(zip(stage.inputs, stage.reference_outputs, weights, strict=True))
        found, before = _learned(losses, stage.fn, leaves, items, optimizer, steps, key)
        size = _size(stage.reference_inputs[0], stage.reference_outputs, weights)
        params, rows = {}, {}
        for path, variables in zip((p for p in stage.params if p in made), found.variables, strict=True):
            q = _hardened(made[path], variables)
            params[path] = cores[path][0].holding(q).leaf()
            rows[path] = _row(rule, q, before, found.loss, size)
        return Edit(params=params, rows=rows)

    return edit


def _learned(losses: Any, fn: Any, leaves: Any, items: Any, optimizer: Any, steps: int, key: jax.Array) -> Any:
    """The best variables and the error of rounding to nearest, which is also the unit of the loss."""
    loss, judge = losses
    variables = tuple(latent.theta["variables"] for latent in latents(leaves))
    constants = {"leaves": leaves, "unit": jnp.float32(1)}
    before = mean_loss(judge, fn, variables, constants, items)
    # Hidden states have no common scale; relative to rounding to nearest, penalties mean the same everywhere.
    constants["unit"] = jnp.where(before > 0, 1.0 / jnp.where(before > 0, before, 1.0), 1.0)
    found = minimize(
        loss, fn, variables, constants, items, optimizer=optimizer, steps=steps, key=key, judge=judge
    )  # fmt: skip
    return found, before


def _losses(error: Any) -> tuple[Any, Any]:
    """What is minimized, and what is compared: the error of relaxed choices with their penalties, of settled ones bare.

    Made once a transform: they are static, and equal stages then share one compiled step.
    """

    def loss(fn: Any, variables: Any, constants: Any, item: Any, progress: jax.Array) -> jax.Array:
        leaves = with_variables(constants["leaves"], variables)
        penalties = jnp.stack([rule_of(latent).penalty(latent.theta, progress) for latent in latents(leaves)])
        return error(fn, leaves, item) * constants["unit"] + jnp.mean(penalties)

    def judge(fn: Any, variables: Any, constants: Any, item: Any, progress: jax.Array) -> jax.Array:
        del progress
        return error(fn, settled(with_variables(constants["leaves"], variables)), item)

    return loss, judge


def _gram_error(fn: Any, leaves: Any, gram: jax.Array) -> jax.Array:
    """tr(E^T H E) of one latent matrix."""
    del fn
    (latent,) = leaves
    error = latent.w.astype(jnp.float32) - latent.rule.forward(latent.w, latent.theta)
    return jnp.sum(error * (gram @ error))


def _float(path: str, stage: Stage, again: bool) -> tuple[Core, jax.Array]:
    """The maps in front of a leaf as it is now, and its float core. `again`: the leaf may hold an earlier result."""
    core = Core.of(stage.params[path], stage.uses[path])
    matrix = core.matrix
    if again and isinstance(matrix, QArray):
        reference = Core.of(stage.reference[path], stage.uses[path])
        if sum(not m.nonlinear for m in core.maps) != len(reference.maps):
            raise ValueError(
                f"{path}: a map that is no equivalence (channel reassembly) stands in front of it, and its float "
                "matrix is lost once it was rounded; learn it in scope 'block'"
            )
        matrix = reference.matrix
    else:
        refuse_quantized(path, matrix)
    return core, jnp.asarray(matrix).astype(jnp.float32)


def _hardened(latent: Latent, variables: Any) -> QArray:
    rule = rule_of(latent)
    return _harden(rule, latent.w, rule.settle({**latent.theta, "variables": variables}))


@functools.partial(jax.jit, static_argnums=0)
def _begun(rule: Rule, w: jax.Array, key: jax.Array) -> Any:
    return rule.init(w, key)


@functools.partial(jax.jit, static_argnums=0)
def _harden(rule: Rule, w: jax.Array, theta: Any) -> QArray:
    return rule.harden(w, theta)


def _size(x: Any, outputs: Any, weights: Any) -> jax.Array:
    """Mean (weighted) square of what a stage puts out, without the values it only hands on (rotary tables)."""
    handed = floating(x)

    def own(a: jax.Array) -> bool:
        return not any(a.shape == b.shape and bool(jnp.array_equal(a, b)) for b in handed)

    nothing = jax.tree.map(lambda a: jnp.zeros_like(a) if jnp.issubdtype(a.dtype, jnp.floating) else a, outputs[0])
    keep = jax.tree.map(lambda a: jnp.float32(not jnp.issubdtype(a.dtype, jnp.floating) or own(a)), outputs[0])

    def one(y: Any, w: Any) -> jax.Array:
        return weighted_squared_distance(y, nothing, keep if w is None else jax.tree.map(jnp.multiply, keep, w))

    return jnp.mean(jnp.stack([one(y, w) for y, w in zip(outputs, weights, strict=True)]))


def _row(rule: Rule, q: QArray, before: jax.Array, after: jax.Array, size: jax.Array) -> dict[str, Any]:
    return {
        "format": rule.format.name,
        "bits": bits_per_weight(q),
        "error_before": math.sqrt(float(before / size)),
        "error_after": math.sqrt(float(after / size)),
    }
