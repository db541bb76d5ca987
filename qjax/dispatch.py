"""The questions every weight answers, for plain arrays, `QArray`s and operators alike.

`matmul` picks the fastest implementation that can run for the leaf, the platform and the number of tokens; a named one
that cannot run raises. `qjax.explain` shows the choices.
"""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from qjax import qarray
from qjax.operators import grouped
from qjax.operators.implementations import Implementation, choose
from qjax.operators.operator import (
    NotAffine,
    NotLinear,
    Operator,
    assert_affine,
    entry,
    is_operator,
    product,
    ragged_product,
    stored_bits,
    walk,
)
from qjax.qarray import QArray
from qjax.quantization import dequantize

__all__ = [
    "NotAffine",
    "NotLinear",
    "affine",
    "bits",
    "dense",
    "index",
    "is_operator",
    "matmul",
    "outputs",
    "ragged_dot",
    "rows",
    "scannable",
    "shape",
    "transpose",
]


def matmul(x: jax.Array, op: Any, *, implementation: str | None = None, dtype: Any = None) -> jax.Array:
    """Take x [batch..., tokens..., K] through op [batch..., K, N] -> [batch..., tokens..., N].

    Products are taken in the dtype of x with float32 accumulation (float64 for float64); the result has dtype `dtype`
    or that of x. `implementation` names how the quantized leaves of op are computed: ValueError where that cannot run.
    TypeError for an x that is not floating, ValueError for shapes that do not fit.

    >>> import jax.numpy as jnp
    >>> matmul(jnp.ones((2, 3)), jnp.ones((3, 4))).shape
    (2, 4)
    """
    batch = op.shape[:-2]
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"matmul takes floating activations, got {x.dtype} {x.shape}")
    if x.ndim <= len(batch) or x.shape[: len(batch)] != batch or x.shape[-1] != op.shape[-2]:
        raise ValueError(f"x {x.shape} does not fit an operator {op.shape}: expected {(*batch, '...', op.shape[-2])}")
    if isinstance(op, Operator):
        return op.matmul(x, dtype=dtype, implementation=implementation)
    if isinstance(op, QArray):
        tokens = math.prod(x.shape[len(batch) : -1])
        return choose(IMPLEMENTATIONS, op, tokens, jax.default_backend(), implementation, x.dtype).run(x, op, dtype)
    return product(x, op, dtype)


def ragged_dot(
    x: jax.Array, op: Any, sizes: jax.Array, *, implementation: str | None = None, dtype: Any = None
) -> jax.Array:
    """Take runs of rows of x [tokens, K], as long as sizes [E] say, through the matrices of op [E, K, N], in order.

    `jax.lax.ragged_dot` for a quantized leaf: mixtures of experts sort their tokens so. Rows after the last run become
    zeros. `implementation` and `dtype` as in `matmul`. TypeError for an x that is not floating, ValueError for shapes
    that do not fit.

    >>> import jax.numpy as jnp
    >>> ragged_dot(jnp.ones((3, 2)), jnp.array([[[1.0], [1.0]], [[2.0], [2.0]]]), jnp.array([1, 2])).tolist()
    [[2.0], [4.0], [4.0]]
    """
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise TypeError(f"ragged_dot takes floating activations, got {x.dtype} {x.shape}")
    if x.ndim != 2 or len(op.shape) != 3 or x.shape[1] != op.shape[1] or sizes.shape != op.shape[:1]:
        raise ValueError(
            f"x {x.shape} and sizes {sizes.shape} do not fit an operator {tuple(op.shape)}: expected [tokens, K], [E]"
            " and [E, K, N]"
        )
    if isinstance(op, Operator):
        return op.ragged_dot(x, sizes, dtype=dtype, implementation=implementation)
    if implementation not in (None, "dequantize"):
        raise ValueError(f"no implementation {implementation!r} for {type(op).__name__}: know ['dequantize']")
    return ragged_product(x, dense(op), sizes, dtype)


def affine(op: Any) -> tuple[jax.Array, jax.Array | None]:
    """(W [batch..., K, N], b [batch..., N] or None) with matmul(x, op) == x @ W + b.

    Raises NotAffine with the path of an activation quantizer inside op.
    """
    if isinstance(op, Operator):
        assert_affine(op)
        return op.affine()
    return (dequantize(op) if isinstance(op, QArray) else op), None


def dense(op: Any) -> jax.Array:
    """W [batch..., K, N] alone; NotAffine where an activation quantizer would be lost, NotLinear where a bias would."""
    W, b = affine(op)
    if b is not None:
        raise NotLinear(f"{type(op).__name__} {op.shape} adds a bias that its matrix would lose; use affine(op)")
    return W


def rows(op: Any, ids: jax.Array) -> jax.Array:
    """The output units named by ids, W.T[ids]: [batch..., *ids.shape, K]; what an embedding gather needs.

    Negative ids count from the end; rows of ids outside W are NaN, as in `jnp.take`. Of a quantized leaf only the
    codes and scales of those rows are read.
    """
    if isinstance(op, Operator):
        return op.rows(ids)
    if isinstance(op, QArray):
        return taken_rows(qarray.take(op, ids.reshape(-1), axis=-1), ids, op.shape[-1])
    taken = jnp.moveaxis(jnp.take(op, ids.reshape(-1), axis=-1), -1, -2)
    return taken.reshape(*op.shape[:-2], *ids.shape, op.shape[-2])


def taken_rows(q: QArray, ids: jax.Array, N: int) -> jax.Array:
    """The outputs q [batch..., K, ids.size] that were taken of N, as rows [batch..., *ids.shape, K]."""
    found = jnp.swapaxes(dequantize(q), -1, -2)  # codes know no NaN, and a scale may be shared by all
    there = jnp.broadcast_to(((ids >= -N) & (ids < N)).reshape(-1, 1), found.shape)
    return jnp.where(there, found, jnp.asarray(jnp.nan, found.dtype)).reshape(*q.shape[:-2], *ids.shape, q.shape[-2])


def transpose(op: Any) -> Any:
    """The operator of W.T, [batch..., N, K]."""
    if isinstance(op, Operator):
        assert_affine(op)
        return op.transpose()
    return qarray.transpose(op) if isinstance(op, QArray) else jnp.swapaxes(op, -1, -2)


def outputs(op: Any, start: Any, size: int) -> Any:
    """The operator of W[..., start:start + size], or None where the node has no rule (or a block would be cut)."""
    if isinstance(op, Operator):
        return op.outputs(start, size)
    if isinstance(op, QArray):
        if op.meta.block[-1] not in (1, qarray.FULL):
            return None
        return qarray.take(op, start + jnp.arange(size), axis=-1)
    return lax.dynamic_slice_in_dim(op, start, size, axis=op.ndim - 1)


def index(op: Any, i: Any) -> Any:
    """Entry i (an int or a traced integer) of the first batch axis."""
    if len(op.shape) < 3:
        raise IndexError(f"index: {type(op).__name__} {op.shape} has no batch axis")
    return op.index(i) if isinstance(op, Operator) else jax.tree.map(lambda leaf: entry(leaf, i), op)


def scannable(op: Any) -> Any:
    """The operator with every array's first axis as long as its own, for `lax.scan`; None if its layers differ."""
    if len(op.shape) < 3:
        return None
    length = op.shape[0]
    leaves, tree = jax.tree.flatten(op)
    if any(leaf.ndim == 0 or leaf.shape[0] not in (1, length) for leaf in leaves) or not stacked(op):
        return None
    full = [leaf if leaf.shape[0] == length else jnp.broadcast_to(leaf, (length, *leaf.shape[1:])) for leaf in leaves]
    return jax.tree.unflatten(tree, full)


def stacked(op: Any) -> bool:
    """Whether one tree structure serves every entry of the first batch axis."""
    return all(node.uniform for _, node in walk(op) if isinstance(node, Operator))


def shape(op: Any) -> tuple[int, ...]:
    """(batch..., K, N)."""
    return tuple(op.shape)


def bits(op: Any) -> float:
    """Bits stored: codes, scales, offsets, tables, indices, learned maps, padding; plain arrays as they are."""
    return stored_bits(op)


def always(leaf: Any, tokens: int, platform: str, dtype: Any) -> None:
    """No objection."""


IMPLEMENTATIONS: tuple[Implementation, ...] = (
    grouped.BYTES,
    Implementation("dequantize", always, lambda *_: True, lambda x, q, dtype: product(x, dequantize(q), dtype)),
)
