"""Rotations folded into weights: the residual stream turned as a whole, and the value channels of every head.

RMSNorm divides by a length, which no rotation changes; so once its gain has moved into the weights behind it, a stream
x R gives the same network if every writer's outputs are turned by R and every reader's inputs by it (W -> Rᵀ W). Value
channels are only mixed over tokens between v and o, so each head may be turned there too.

Source: QuaRot (Ashkboos et al. 2024, arXiv:2404.00456), sections 3 and 4, after SliceGPT (arXiv:2401.15024, theorem 1);
R1 and R2 of SpinQuant (arXiv:2405.16406). Catalogue H1-H3.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from qjax import dispatch
from qjax.equivalence.folding import scaled_along
from qjax.operators import ByUse, Hadamard, Map, Orthogonal, View
from qjax.trace.topology import Topology

Leaves = Mapping[str, Any]


def absorb_gains(leaves: Leaves, topology: Topology) -> dict[str, Any]:
    """Every norm's gain moved into its readers: the leaves that change, the gains as ones.

    A tied embedding is read twice, and only the head is behind the last norm: it becomes `ByUse(take, dot)`.

    Raises:
        ValueError: a norm with a bias (its shift cannot pass), or a leaf that is not a float array.
    """
    new: dict[str, Any] = {}
    written = {port.path for port in topology.writers}
    for norm in topology.norms:
        if norm.bias is not None:
            raise ValueError(f"{norm.bias}: only gains move into the readers of a norm, and this one adds a bias")
        gain = _float(norm.gain, leaves)
        for port in norm.consumers:
            w = _float(port.path, leaves)
            scaled = scaled_along(w, port.axis, gain)
            assert scaled is not None  # w is an array
            new[port.path] = _tied(w, scaled, port.axis) if port.path in written else scaled
        new[norm.gain] = jnp.ones_like(gain)
    return new


def rotate_stream(leaves: Leaves, topology: Topology, rotation: Hadamard | Orthogonal) -> dict[str, Any]:
    """The residual stream x as x R, gains absorbed first: the leaves that change.

    Args:
        leaves: path -> float array, all that the topology names.
        topology: readers and writers of the stream, and the norms between.
        rotation: R on all channels of the stream.

    Raises:
        ValueError: norms that subtract a mean, a topology without a stream, a map that is no rotation, a leaf that is
            not a float array.
    """
    if not topology.rms:
        raise ValueError("the norms of this topology subtract a mean, which a rotation of the stream does not keep")
    if not topology.writers:
        raise ValueError(
            "the topology lists no writers of the stream: a norm behind a layer's parts fixes its channels"
        )
    if not isinstance(rotation, Hadamard | Orthogonal):
        raise ValueError(f"the stream passes norms: only a rotation keeps lengths, {type(rotation).__name__} does not")
    topology.check({path: tuple(leaf.shape) for path, leaf in leaves.items()})
    new = absorb_gains(leaves, topology)
    for path in {port.path: None for port in (*topology.writers, *topology.readers)}:
        axes = {port.axis for port in (*topology.writers, *topology.readers) if port.path == path}
        leaf = new.get(path, leaves[path])
        for axis in axes:  # one, unless a square matrix of the user's both reads and writes
            leaf = _turned(path, leaf, axis, rotation)
        new[path] = leaf
    for port in topology.writers:
        if port.bias is not None:
            new[port.bias] = _turned(port.bias, leaves[port.bias], -1, rotation)
    return new


def rotate_values(
    leaves: Leaves, topology: Topology, rotation: Hadamard | Orthogonal | Mapping[str, Orthogonal]
) -> dict[str, Any]:
    """The value channels of every head as v R, R on `head_dim` channels: the leaves that change.

    `rotation` is one for all layers, or one for each by the path of its value projection.

    Raises:
        ValueError: a leaf that is not a float array.
    """
    new: dict[str, Any] = {}
    for values in topology.values:
        own = rotation[values.v.path] if isinstance(rotation, Mapping) else rotation
        new[values.o.path] = _turned(values.o.path, leaves[values.o.path], values.o.axis, own, values.head_dim)
        new[values.v.path] = _turned(values.v.path, leaves[values.v.path], values.v.axis, own, values.head_dim)
        if values.v.bias is not None:
            new[values.v.bias] = _turned(values.v.bias, leaves[values.v.bias], -1, own, values.head_dim)
    return new


def _turned(path: str, leaf: Any, axis: int, rotation: Map, size: int | None = None) -> Any:
    """The leaf with the rotation along a stored axis, on blocks of `size` channels (default: on all at once)."""
    if isinstance(leaf, View) and isinstance(leaf.op, ByUse):
        take, dot = (View(op, leaf.axes, leaf.dtype).dense() for op in (leaf.op.take, leaf.op.dot))
        return _tied(_turned(path, take, axis, rotation, size), _turned(path, dot, axis, rotation, size), axis)
    x = jnp.moveaxis(_float(path, {path: leaf}).astype(jnp.float32), axis, -1)
    y = rotation.apply(x if size is None else x.reshape(*x.shape[:-1], -1, size)).reshape(x.shape)
    return jnp.moveaxis(y, -1, axis).astype(leaf.dtype)


def _tied(take: jax.Array, dot: jax.Array, axis: int) -> View:
    """Two versions of one stored matrix whose channels of the stream lie along `axis`."""
    matrices = (w.T if axis % 2 else w for w in (take, dot))
    return View.store(ByUse(*matrices), take.shape, in_axes=(axis % 2,), out_axes=(1 - axis % 2,))


def _float(path: str, leaves: Leaves) -> jax.Array:
    leaf = leaves[path]
    if dispatch.is_operator(leaf) or not jnp.issubdtype(leaf.dtype, jnp.floating):
        raise ValueError(f"{path}: holds {type(leaf).__name__}; rotations come before the methods that quantize")
    return jnp.asarray(leaf)
