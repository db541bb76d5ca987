"""An optax transformation that keeps variables inside limits, and the optimizer of sign descent that needs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax

Limits = Mapping[str, tuple[float, float]]


def bounded(limits: Limits) -> optax.GradientTransformation:
    """Cut each update so that the variables named by `limits` (the last key of their path) stay within them.

    Goes last in an `optax.chain`; names without limits are free.

    >>> keep = bounded({"shift": (-0.5, 0.5)})
    >>> update, _ = keep.update({"shift": jnp.array([0.4])}, keep.init({}), {"shift": jnp.array([0.3])})
    >>> update["shift"].round(2).tolist()
    [0.2]
    """

    def cut(path: Any, update: jax.Array, variable: jax.Array) -> jax.Array:
        name = jax.tree_util.keystr(path[-1:], simple=True)
        if name not in limits:
            return update
        low, high = limits[name]
        return jnp.clip(variable + update, low, high) - variable

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, Any]:
        return jax.tree_util.tree_map_with_path(cut, updates, params), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)


def sign_descent(steps: int, limits: Limits, rate: float | None = None) -> optax.GradientTransformation:
    """Steps of `rate` (1/steps if None) by the sign of the gradient, falling linearly to zero, within limits.

    With the default rate a variable travels at most 1/2 in all (arXiv:2309.05516).
    """
    schedule = optax.linear_schedule(1.0 / steps if rate is None else rate, 0.0, steps)
    return optax.chain(optax.sign_sgd(schedule), bounded(limits))
