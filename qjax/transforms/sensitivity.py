"""How much each number that blocks put out matters to the loss, or to the outputs, of the whole float model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

DRAWS = 16
"""Random signs that the model's outputs are projected on."""


def sensitivities(
    fns: Sequence[Callable[[Any, Any], Any]],
    leaves: Sequence[Any],
    at: Sequence[int],
    items: Sequence[tuple[Any, Any]],
    loss: Callable[[Any, Any], jax.Array] | None,
    key: jax.Array,
) -> list[tuple[Any, ...]]:
    """For each item the squared slopes by what the blocks `at` put out, trees like it in float32 (0 for integers).

    The blocks are run one after the other. With a loss, (outputs, batch) -> scalar, these are the squares of its
    gradient: a diagonal of the empirical Fisher matrix (BRECQ, arXiv:2102.05426, eq. 10; catalogue D4). Without one,
    the mean square of J^T v over `DRAWS` vectors v of random signs, J the Jacobian of the outputs: Hutchinson's
    estimate of the diagonal of J^T J, which bounds the Hessian of the loss and needs no labels (EPTQ, arXiv:2309.11531;
    catalogue D9).

    Args:
        fns: one a block, (leaves, x) -> output.
        leaves: what each block reads.
        at: numbers of the blocks whose outputs are asked about.
        items: (input of the first block, batch).
        loss: see above; None for the outputs.
        key: for the signs.
    """
    return [_of_item(fns, leaves, at, x, batch, loss, jax.random.fold_in(key, i)) for i, (x, batch) in enumerate(items)]


def _of_item(
    fns: Sequence[Callable[[Any, Any], Any]],
    leaves: Sequence[Any],
    at: Sequence[int],
    x: Any,
    batch: Any,
    loss: Callable[[Any, Any], jax.Array] | None,
    key: jax.Array,
) -> tuple[Any, ...]:
    still, shape = [], x
    for i, (fn, own) in enumerate(zip(fns, leaves, strict=True)):
        shape = jax.eval_shape(fn, own, shape)
        if i in at:
            still.append(jax.tree.map(lambda a: jnp.zeros(a.shape if _floating(a) else (), jnp.float32), shape))

    def results(moves: tuple[Any, ...]) -> list[jax.Array]:
        left, y = iter(moves), x
        for i, (fn, own) in enumerate(zip(fns, leaves, strict=True)):
            y = fn(own, y)
            if i in at:
                y = jax.tree.map(lambda a, by: a + by.astype(a.dtype) if _floating(a) else a, y, next(left))
        return [loss(y, batch)] if loss is not None else [a for a in jax.tree.leaves(y) if _floating(a)]

    found, pull = jax.vjp(results, tuple(still))
    if loss is not None:
        return jax.tree.map(jnp.square, pull([jnp.ones_like(found[0])])[0])
    total = jax.tree.map(jnp.zeros_like, tuple(still))
    for draw in jax.random.split(key, DRAWS):
        signs = [
            jax.random.rademacher(own, a.shape, a.dtype)
            for own, a in zip(jax.random.split(draw, len(found)), found, strict=True)
        ]
        total = jax.tree.map(lambda sum, slope: sum + jnp.square(slope) / DRAWS, total, pull(signs)[0])
    return total


def _floating(a: Any) -> bool:
    return jnp.issubdtype(a.dtype, jnp.floating)
