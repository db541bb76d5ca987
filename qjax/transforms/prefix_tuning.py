"""Training of a prefix alone, behind everything that has been rounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from qjax.reconstruct import minimize
from qjax.trace.sites import captured
from qjax.transforms.contract import Edit, Stage, Transform, stateless

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
        own = {path: leaf for path, leaf in stage.params.items() if "/prefix_" in path}
        if not own:
            raise ValueError("tune_prefix: this model has no prefix; put `prefix` or `outlier_prefix` before it")
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
