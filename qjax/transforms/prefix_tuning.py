"""Training of a prefix alone, behind everything that has been rounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from qjax.formats import Format, as_format
from qjax.reconstruct import minimize
from qjax.trace.sites import captured
from qjax.transforms.contract import Edit, Needs, Stage, Transform, stateless
from qjax.transforms.prefix_search import INPUTS, error_behind

BLOCKS = "*/residual/ffn"


def tune_prefix(
    *, steps: int = 160, rate: float = 2e-4, largest_gradient: float = 0.3, outputs: str = BLOCKS
) -> Transform:
    """Train the prefix's keys and values until every block puts out what the float model's does (catalogue I8).

    Liu et al. 2024, "IntactKV" (arXiv:2403.01241), section 3.3 and the authors' code: Adam at a constant rate on the
    sum over blocks of half the mean squared difference, the gradient's norm limited to `largest_gradient`; nothing
    else moves. The float model keeps its own prefix. `outputs` is a glob of the blocks' outputs among the sites. A step
    reads one calibration batch; where the mean loss of all ends higher than it began, the prefix stays as it was.

    Comes behind `prefix` and behind the methods that quantize.

    Raises:
        ValueError: no prefix in the model; a negative number of steps.
    """
    if steps < 0:
        raise ValueError(f"tune_prefix: {steps} steps; give no negative number")
    optimizer = optax.chain(optax.clip_by_global_norm(largest_gradient), optax.adam(rate))

    def edit(stage: Stage, key: jax.Array) -> Edit:
        own = _own("tune_prefix", stage)
        found = minimize(
            _Blocks(tuple(stage.params), outputs),
            stage.fn,
            own,
            (tuple(stage.params.values()), tuple(stage.reference.values())),
            stage.inputs,
            optimizer=optimizer,
            steps=steps,
            key=key,
        )
        errors = {"error_before": float(found.before), "error_after": float(found.loss)}
        kept = {path: stage.reference[path] for path in own}
        return Edit(added=kept, params=found.variables, rows=dict.fromkeys(own, errors))

    return stateless(f"tune_prefix {steps} steps", "model", edit)


def soften_prefix(
    fmt: Format | str = "int8_tensor",
    *,
    weight: float = 0.01,
    steps: int = 100,
    rate: float = 1e-3,
    inputs: tuple[str, ...] = INPUTS,
) -> Transform:
    """Train the prefix's keys and values on the model's loss and on what the activations behind it lose by rounding.

    The second half of CushionCache (Son et al. 2024, arXiv:2406.12016; catalogue I7), which tunes the prefix so that
    what stands behind it rounds well: the loss given to `run` plus `weight` times the error of `search_prefix`, whose
    rounded values pass no gradient. The weight, Adam, its rate and the number of steps are ours. A step reads one
    calibration batch; where the mean loss of all ends higher than it began, the prefix stays as it was. Comes behind a
    transform that adds a prefix, in front of those that round.

    Raises:
        ValueError: no prefix in the model, no loss; a negative number of steps.
    """
    f = as_format(fmt)
    if steps < 0:
        raise ValueError(f"soften_prefix: {steps} steps; give no negative number")
    optimizer = optax.adam(rate)

    def edit(stage: Stage, key: jax.Array) -> Edit:
        own = _own("soften_prefix", stage)
        found = minimize(
            _Rounding(tuple(stage.params), f, weight, inputs),
            (stage.fn, stage.loss),
            own,
            tuple(stage.params.values()),
            stage.inputs,
            optimizer=optimizer,
            steps=steps,
            key=key,
        )
        errors = {"error_before": float(found.before), "error_after": float(found.loss)}
        # Nothing is rounded yet: the trained prefix is the float model's from here on.
        return Edit(added=found.variables, rows=dict.fromkeys(own, errors))

    return stateless(f"soften_prefix {f.name} {steps} steps", "model", edit, Needs(loss=True))


def _own(name: str, stage: Stage) -> dict[str, jax.Array]:
    own = {path: leaf for path, leaf in stage.params.items() if "/prefix_" in path}
    if not own:
        raise ValueError(f"{name}: this model has no prefix; put `prefix` or `outlier_prefix` before it")
    return own


class _Rounding(NamedTuple):
    """The loss of `soften_prefix`: `order` are the paths of the leaves."""

    order: tuple[str, ...]
    format: Format
    weight: float
    inputs: tuple[str, ...]

    def __call__(
        self, fn: Any, variables: Mapping[str, jax.Array], constants: Any, item: Any, progress: jax.Array
    ) -> jax.Array:
        del progress
        run, loss = fn
        leaves = tuple(variables.get(path, leaf) for path, leaf in zip(self.order, constants, strict=True))
        lost = jnp.mean(error_behind(run, self.format, self.inputs)(leaves, item, 0))
        return loss(leaves, item) + jnp.float32(self.weight) * lost


class _Blocks(NamedTuple):
    """The loss of `tune_prefix`: `order` are the paths of the leaves, `outputs` the sites that are compared."""

    order: tuple[str, ...]
    outputs: str

    def __call__(
        self, fn: Any, variables: Mapping[str, jax.Array], constants: Any, item: Any, progress: jax.Array
    ) -> jax.Array:
        del progress
        now, reference = constants
        tuned = tuple(variables.get(path, leaf) for path, leaf in zip(self.order, now, strict=True))
        got, want = (captured(fn, self.outputs)(leaves, item)[1] for leaves in (tuned, reference))
        return sum((jnp.mean((got[site] - want[site]) ** 2) / 2 for site in got), start=jnp.float32(0))
