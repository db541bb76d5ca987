"""The one engine of every learned method: variables, a loss, an optax optimizer, a number of steps."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

AHEAD = 8
"""Steps that may be dispatched before the first of them has run."""

Loss = Callable[[Hashable, Any, Any, Any, jax.Array], jax.Array]
"""(fn, variables, constants, item, progress) -> scalar; progress is the share of the steps taken, float32 in [0, 1]."""


class Minimum(NamedTuple):
    """The better variables, their mean loss over the items, and the loss they began with (float32 scalars)."""

    variables: Any
    loss: jax.Array
    before: jax.Array


def minimize(
    loss: Loss,
    fn: Hashable,
    variables: Any,
    constants: Any,
    items: Sequence[Any],
    *,
    optimizer: optax.GradientTransformation,
    steps: int,
    key: jax.Array,
    judge: Loss | None = None,
) -> Minimum:
    """Minimize the mean over items of `loss(fn, variables, constants, item, progress)`; a step draws an item by key.

    The mean of `judge` (of the loss itself, if None) over all items is taken at the start and at the end, and the
    better variables are returned: a learned method never gives back something worse than what it began with. A relaxed
    rounding is judged by what it rounds to. `loss`, `judge`, `fn` and `optimizer` are static: equal stages, which share
    their `fn`, share one compiled step.

    Args:
        loss: (fn, variables, constants, item, progress) -> scalar.
        fn: static and hashable, such as `Stage.fn`.
        variables: pytree of float arrays that are optimized.
        constants: pytree of what the loss reads besides, operators included.
        items: calibration items of equal shapes.
        optimizer: optax, schedules included.
        steps: number of updates.
        key: for the order of the items.
        judge: compares the end with the start, at progress 1.

    Raises:
        ValueError: no items, a negative number of steps, or a variable that is not floating.
    """
    if not items or steps < 0:
        raise ValueError(
            f"minimize: {len(items)} items and {steps} steps; give at least one item and no negative steps"
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables):
        if not jnp.issubdtype(jnp.asarray(leaf).dtype, jnp.floating):
            raise ValueError(
                f"minimize: variable {jax.tree_util.keystr(path)} is {leaf.dtype}; only floating arrays have gradients"
            )
    judge = loss if judge is None else judge
    before = mean_loss(judge, fn, variables, constants, items)
    state, now = optimizer.init(variables), variables
    order = jax.random.randint(key, (steps,), 0, len(items)).tolist()
    for i, item in enumerate(order):
        progress = jnp.float32(i / max(steps, 1))
        now, state = _update(loss, fn, optimizer, now, state, constants, items[item], progress)
        if i % AHEAD == 0:
            jax.block_until_ready(now)  # each step in the queue holds variables and a state of its own
    after = mean_loss(judge, fn, now, constants, items)
    better = after < before  # False for NaN too
    best = jax.tree.map(lambda a, b: jnp.where(better, a, b), now, variables)
    return Minimum(best, jnp.where(better, after, before), before)


def mean_loss(loss: Loss, fn: Hashable, variables: Any, constants: Any, items: Sequence[Any]) -> jax.Array:
    """The mean over all items of the loss at progress 1, float32."""
    return jnp.mean(jnp.stack([_value(loss, fn, variables, constants, item, jnp.float32(1)) for item in items]))


@functools.partial(jax.jit, static_argnums=(0, 1, 2))
def _update(
    loss: Any, fn: Any, optimizer: Any, variables: Any, state: Any, constants: Any, item: Any, progress: jax.Array
) -> Any:
    gradient = jax.grad(lambda v: loss(fn, v, constants, item, progress))(variables)
    with jax.numpy_dtype_promotion("standard"):  # optax divides integers by floats, which strict promotion refuses
        updates, state = optimizer.update(gradient, state, variables)
    return optax.apply_updates(variables, updates), state


@functools.partial(jax.jit, static_argnums=(0, 1))
def _value(loss: Any, fn: Any, variables: Any, constants: Any, item: Any, progress: jax.Array) -> jax.Array:
    return loss(fn, variables, constants, item, progress).astype(jnp.float32)
