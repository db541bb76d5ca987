"""Data-free quantization: the ranges of two layers in a row made equal, high biases absorbed (catalogue B16).

Nagel et al., "Data-free quantization through weight equalization and bias correction", ICCV 2019 (arXiv:1906.04721).
Between two layers with f(s x) = s f(x) for s > 0 in between (a ReLU, a gated product, nothing), channel i of the first
may be divided by s_i and row i of the second multiplied by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.scipy import stats

from qjax import dispatch
from qjax.equivalence.folding import scaled_along
from qjax.trace.topology import Port, Topology, Values
from qjax.trace.use import Use

Leaves = Mapping[str, Any]


def equalizing_scale(first: Array, second: Array) -> Array:
    """s = sqrt(first / second): channels of range `first` [..., n], over s, get the range of `second` [..., n] times s.

    Both are then sqrt(first * second), which makes sum_i p_i q_i largest, p_i and q_i being channel i's share of the
    range of its whole tensor in the two layers (section 4.1). 1 where a range is zero. Float32.

    >>> equalizing_scale(jnp.array([8.0, 1.0, 0.0]), jnp.array([2.0, 4.0, 3.0])).tolist()
    [2.0, 0.5, 1.0]
    """
    alive = (first > 0) & (second > 0)
    return jnp.where(alive, jnp.sqrt(jnp.where(alive, first, 1.0)) / jnp.sqrt(jnp.where(alive, second, 1.0)), 1.0)


def absorbed(mean: Array, std: Array) -> Array:
    """c = max(0, mean - 3 std): what a ReLU lets pass unchanged of pre-activations N(mean, std^2) but for 0.135 %.

    The first layer's bias may lose c and the second's gain W c, which narrows what lies between (section 4.1). Both
    [..., n] float32: shift and scale of a batch norm in the paper, or measured.

    >>> absorbed(jnp.array([5.0, 1.0]), jnp.array([1.0, 1.0])).tolist()
    [2.0, 0.0]
    """
    return jnp.maximum(mean - 3 * std, 0)


def clipped_normal_mean(mean: Array, std: Array, low: float = 0.0, high: float = math.inf) -> Array:
    """E[clip(x, low, high)] of x ~ N(mean, std^2): what a layer reads behind a batch norm and a ReLU, or a ReLU6.

    For the bias correction without data, (W - W')^T E[x] added to the output (section 4.2). [..., n] float32, std > 0.

    >>> round(float(clipped_normal_mean(jnp.float32(0.0), jnp.float32(1.0))), 4)  # 1 / sqrt(2 pi)
    0.3989
    """
    a, b = (low - mean) / std, (high - mean) / std
    inside = mean * (stats.norm.cdf(b) - stats.norm.cdf(a)) + std * (stats.norm.pdf(a) - stats.norm.pdf(b))
    ends = (0 if low == 0 else low * stats.norm.cdf(a)) + (0 if high == math.inf else high * stats.norm.sf(b))
    return inside + ends


def equalize_ranges(leaves: Leaves, uses: Mapping[str, Use], topology: Topology, rounds: int = 20) -> dict[str, Any]:
    """Every pair of layers that the topology puts in a row equalized: the leaves that change.

    Pairs are up and down of a product that lets scales pass, and v and o of attention, where the heads that share a
    value channel share its scale. The range of a channel is its largest magnitude. Pairs that share a layer disturb
    each other: the sweep over all pairs is repeated until no scale is more than 1e-3 from 1, or `rounds` times.

    Args:
        leaves: path -> float array, all that the topology names.
        uses: how each matrix is contracted.
        topology: which layer follows which.
        rounds: at most so many sweeps.

    Raises:
        ValueError: a layer that is not a float array any more.
    """
    topology.check({path: tuple(leaf.shape) for path, leaf in leaves.items()})
    quantized = [port.path for port in topology.ports() if dispatch.is_operator(leaves[port.path])]
    if quantized:
        held = type(leaves[quantized[0]]).__name__
        raise ValueError(f"{quantized[0]} already holds {held}: equalize before any other method")
    pairs: list[tuple[Port, Port, Values | None]] = [(v.v, v.o, v) for v in topology.values]
    pairs += [(p.up, p.down, None) for p in topology.products if p.passes_scales]
    now, new = dict(leaves), dict[str, Any]()
    for _ in range(rounds):
        moved = 0.0
        for first, second, values in pairs:
            s = _scale(now, uses, first, second, values)
            moved = max(moved, float(jnp.max(jnp.abs(s - 1))))
            wide = s if values is None else _per_head(s, values)
            changed = {first.path: _scaled(now, first, 1 / s), second.path: _scaled(now, second, wide)}
            if first.bias is not None:
                bias = now[first.bias]
                changed[first.bias] = (bias.astype(jnp.float32) / s).astype(bias.dtype)
            now |= changed
            new |= changed
        if moved <= 1e-3:
            break
    return new


def _scale(leaves: Leaves, uses: Mapping[str, Use], first: Port, second: Port, values: Values | None) -> Array:
    outputs, inputs = (jnp.abs(uses[port.path].to_matrix(leaves[port.path])) for port in (first, second))
    r1, r2 = jnp.max(outputs, axis=-2).astype(jnp.float32), jnp.max(inputs, axis=-1).astype(jnp.float32)
    if values is not None:
        shared = r2.reshape(*r2.shape[:-1], values.kv_heads, values.heads // values.kv_heads, values.head_dim)
        r2 = jnp.max(shared, axis=-2).reshape(r1.shape)
    return jax.jit(equalizing_scale)(r1, r2)


def _per_head(s: Array, values: Values) -> Array:
    """Scales of value channels as those of the heads that read them."""
    parts = s.reshape(*s.shape[:-1], values.kv_heads, 1, values.head_dim)
    repeats = values.heads // values.kv_heads
    wide = jnp.broadcast_to(parts, (*s.shape[:-1], values.kv_heads, repeats, values.head_dim))
    return wide.reshape(*s.shape[:-1], values.heads * values.head_dim)


def _scaled(leaves: Leaves, port: Port, scale: Array) -> Any:
    return scaled_along(leaves[port.path], port.axis, scale)
