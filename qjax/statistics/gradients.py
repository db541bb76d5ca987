"""Diagonal of the empirical Fisher matrix: the mean square of the loss gradient (weights of SqueezeLLM and others).

The only statistic that comes from cotangents: a gradient is one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from qjax.statistics.batches import require_batches

PyTree = Any


def _square(gradient: jax.Array) -> jax.Array:
    return jnp.square(gradient.astype(jnp.float32))


def fisher(
    loss: Callable[[PyTree, PyTree], jax.Array],
    params: PyTree,
    batches: Sequence[PyTree],
    per_example: bool = True,
) -> PyTree:
    """Mean over examples of (d loss / d params)**2, float32, a tree like `params`.

    `loss(params, batch)` is a scalar. With `per_example` each batch is cut along its leading axis and every gradient is
    of one example (kept as a batch of size 1), one after another, so memory holds one gradient; otherwise every batch
    counts as one example. Leaves that are not float arrays raise TypeError: differentiate a tree of `qjax.trainable`.
    """
    require_batches(batches)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            where = jax.tree_util.keystr(path, simple=True, separator="/")
            raise TypeError(f"{where} has dtype {leaf.dtype}: the Fisher diagonal needs float leaves (qjax.trainable)")

    @jax.jit
    def total(params: PyTree, batch: PyTree) -> tuple[PyTree, jax.Array]:
        if not per_example:
            return jax.tree.map(_square, jax.grad(loss)(params, batch)), jnp.float32(1)
        sizes = {leaf.shape[0] for leaf in jax.tree.leaves(batch)}
        if len(sizes) != 1:
            raise ValueError(
                f"per_example cuts the leading axis of every batch array, but they differ: {sorted(sizes)}"
            )
        singles = jax.tree.map(lambda leaf: leaf[:, None], batch)

        def step(acc: PyTree, example: PyTree) -> tuple[PyTree, None]:
            gradient = jax.grad(loss)(params, example)
            return jax.tree.map(lambda a, g: a + _square(g), acc, gradient), None

        zero = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), params)
        return jax.lax.scan(step, zero, singles)[0], jnp.float32(sizes.pop())

    parts = [total(params, batch) for batch in batches]
    count = sum((n for _, n in parts), jnp.float32(0))
    return jax.tree.map(lambda *squares: sum(squares[1:], squares[0]) / count, *(squares for squares, _ in parts))
