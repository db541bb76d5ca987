"""Equivalences folded: a scale in front of a matmul moved into whatever produces its input, where that is exact.

An online scale `Pre(Diag(d), op)` costs a multiplication a channel and token. It disappears into the gain of the norm
that feeds the leaf if all readers of the norm carry the same d; into the value projection if d agrees over the query
heads that share a value head; into the up projection in front of a gated product. A shift joins the norm's bias, if it
has one; what a shift left behind the matrix joins the matrix's own bias. What cannot move stays, and is listed with
why.

Source: SmoothQuant (Xiao et al. 2022), section 4.2; Outlier Suppression+ (Wei et al. 2023), section 4.1; catalogue G5,
G7.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from qjax import dispatch
from qjax.operators import Diag, Map, Post, Pre, Shift, View
from qjax.trace.paths import leaves_with_paths, replace_leaves
from qjax.trace.topology import Norm, Port, Product, Topology, Values


@dataclasses.dataclass(frozen=True)
class Online:
    """A map that stayed in front of a leaf: which, why, and what it costs a token (multiplications)."""

    path: str
    map: str
    why: str
    cost: int


def fold(params: Any, topology: Topology) -> tuple[Any, tuple[Online, ...]]:
    """Move the outermost scales and shifts of every leaf into its producer, and biases behind it into its own.

    Args:
        params: a tree whose leaves may be `Pre(T, op)`, as `smooth` and `shift_and_scale` leave them.
        topology: which leaf feeds which; `model.topology` for our models.

    Returns:
        The tree, a new one of the same function, and what stayed online.

    Raises:
        ValueError: the topology does not fit the tree.
    """
    leaves = leaves_with_paths(params)
    topology.check({path: tuple(leaf.shape) for path, leaf in leaves.items()})
    new, why = dict(leaves), {}
    for norm in topology.norms:
        why.update(_into_norm(new, norm))
    for values in topology.values:
        why.update(_into_values(new, values))
    for product in topology.products:
        why.update(_into_up(new, product))
    for port in topology.ports():
        _into_bias(new, port)
    stayed = []
    for path, leaf in new.items():
        for m in _maps(leaf):
            reason = why.get(path, "nothing in the topology feeds this leaf alone")
            stayed.append(Online(path, type(m).__name__, reason, _cost(m, _outermost_width(leaf))))
    return replace_leaves(params, {p: leaf for p, leaf in new.items() if leaf is not leaves[p]}), tuple(stayed)


def _into_norm(leaves: dict[str, Any], norm: Norm) -> dict[str, str]:
    paths = [port.path for port in norm.consumers]
    while any(isinstance(_outermost(leaves[p]), Diag | Shift) for p in paths):
        maps = [_outermost(leaves[p]) for p in paths]
        kind = next(type(m) for m in maps if isinstance(m, Diag | Shift))
        values = [jax.tree.leaves(m)[0] for m in maps if type(m) is kind]
        if len(values) < len(maps) or not all(bool(jnp.array_equal(v, values[0])) for v in values):
            word = "scale" if kind is Diag else "shift"
            return dict.fromkeys(paths, f"the readers of {norm.gain} do not all carry the same {word}")
        if kind is Shift and norm.bias is None:
            return dict.fromkeys(paths, f"{norm.gain} has no bias, which a shift could join")
        for name in (norm.bias,) if kind is Shift else (norm.gain, norm.bias):
            if name is not None:
                x, part = leaves[name].astype(jnp.float32), values[0]
                leaves[name] = (x * part if kind is Diag else x + part).astype(leaves[name].dtype)
        for p in paths:
            leaves[p] = _stripped(leaves[p])
    return {}


def _into_values(leaves: dict[str, Any], values: Values) -> dict[str, str]:
    scale = _scale(leaves[values.o.path])
    if scale is None:
        return {}
    batch = scale.shape[:-1]
    shared = scale.reshape(*batch, values.kv_heads, values.heads // values.kv_heads, values.head_dim)
    if not bool(jnp.all(shared == shared[..., :1, :])):
        return {values.o.path: f"query heads that share a value head of {values.v.path} have different scales"}
    return _into_port(leaves, values.v, values.o, shared[..., 0, :].reshape(*batch, -1))


def _into_up(leaves: dict[str, Any], product: Product) -> dict[str, str]:
    scale = _scale(leaves[product.down.path])
    if scale is None:
        return {}
    if not product.passes_scales:
        return {product.down.path: f"an activation lies between it and {product.up.path}"}
    if product.gate is None and not bool(jnp.all(scale > 0)):
        return {product.down.path: f"the activation between it and {product.up.path} lets positive scales pass only"}
    return _into_port(leaves, product.up, product.down, scale)


def _into_port(leaves: dict[str, Any], producer: Port, consumer: Port, scale: jax.Array) -> dict[str, str]:
    leaf = scaled_along(leaves[producer.path], producer.axis, scale)
    if leaf is None:
        return {consumer.path: f"{producer.path}, which feeds it, is quantized already: fold before quantizing"}
    leaves[producer.path] = leaf
    if producer.bias is not None:
        bias = leaves[producer.bias]
        leaves[producer.bias] = (bias.astype(jnp.float32) * scale).astype(bias.dtype)
    leaves[consumer.path] = _stripped(leaves[consumer.path])
    return {}


def _into_bias(leaves: dict[str, Any], port: Port) -> None:
    if port.bias is not None:
        bare, shift = _without_shift(leaves[port.path])
        if shift is not None:
            leaves[port.path] = bare
            leaves[port.bias] = (leaves[port.bias].astype(jnp.float32) + shift).astype(leaves[port.bias].dtype)


def _without_shift(leaf: Any) -> tuple[Any, jax.Array | None]:
    """The leaf without the bias behind its core, and that bias."""
    if isinstance(leaf, View | Pre):
        inner, shift = _without_shift(leaf.op)
        if shift is None:
            return leaf, None
        return _dense_again(dataclasses.replace(leaf, op=inner)), shift
    if isinstance(leaf, Post) and isinstance(leaf.T, Shift):
        return leaf.op, leaf.T.offset
    return leaf, None


def scaled_along(leaf: Any, axis: int, scale: jax.Array) -> Any | None:
    """The leaf with its channels along a stored axis multiplied, or None where its numbers are not float."""
    if isinstance(leaf, Pre):
        inner = scaled_along(leaf.op, -1, scale)
        return None if inner is None else Pre(leaf.T, inner)
    if isinstance(leaf, View):
        inner = scaled_along(leaf.op, -1, scale) if leaf.op.shape[-1] == scale.shape[-1] else None
        return None if inner is None else dataclasses.replace(leaf, op=inner)
    if isinstance(leaf, Post) and isinstance(leaf.T, Shift):
        inner = scaled_along(leaf.op, -1, scale)
        return None if inner is None else Post(inner, Shift(leaf.T.offset * scale))
    w: Any = leaf
    if dispatch.is_operator(leaf):
        return None
    shape = (*scale.shape[:-1], *(scale.shape[-1] if a == axis else 1 for a in range(scale.ndim - 1 - w.ndim, 0)))
    return (w.astype(jnp.float32) * jnp.broadcast_to(scale.reshape(shape), w.shape)).astype(w.dtype)


def _scale(leaf: Any) -> jax.Array | None:
    """The scale right at the leaf's input, if that is its outermost map."""
    m = _outermost(leaf)
    return m.scale if isinstance(m, Diag) else None


def _outermost(leaf: Any) -> Map | None:
    return next(iter(_maps(leaf)), None)


def _maps(leaf: Any) -> list[Map]:
    op, found = (leaf.op if isinstance(leaf, View) else leaf), []
    while isinstance(op, Pre):
        found.append(op.T)
        op = op.op
    return found


def _stripped(leaf: Any) -> Any:
    """The leaf without its outermost map; a bare array in another layout becomes an array again."""
    return _dense_again(dataclasses.replace(leaf, op=leaf.op.op)) if isinstance(leaf, View) else leaf.op


def _dense_again(leaf: Any) -> Any:
    return leaf.dense() if isinstance(leaf, View) and not dispatch.is_operator(leaf.op) else leaf


def _outermost_width(leaf: Any) -> int:
    op = leaf.op if isinstance(leaf, View) else leaf
    return op.shape[-2]


def _cost(m: Map, width: int) -> int:
    """Multiplications a token: one a channel for a scale; for other maps as many as their matrices have columns."""
    if isinstance(m, Diag | Shift):
        return width if isinstance(m, Diag) else 0
    return sum(int(x.shape[-1]) * width if x.ndim > 1 else width for x in jax.tree.leaves(m))
