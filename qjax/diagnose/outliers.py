"""Outliers as their papers define them: in features, in tokens, in single activations and single weights."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array


@jax.jit
def outlier_features(hidden: Array, magnitude: float = 6.0, layers: float = 0.25, tokens: float = 0.06) -> Array:
    """Channels that are outlier features by LLM.int8's definition (arXiv:2208.07339, section 4; catalogue T1).

    A channel is one if some |value| >= `magnitude` in at least the share `layers` of the layers, and if such values
    stand in at least the share `tokens` of the sequence positions, counted over the hidden states of all layers.

    Args:
        hidden: hidden states [layers, ..., width]; what is between is positions.
        magnitude: from where on a value counts.
        layers: the least share of the layers with such a value.
        tokens: the least share of all layers' positions with one.

    Returns:
        Boolean [width].

    >>> outlier_features(jnp.array([[[7.0, 0.0], [0.0, 0.0]], [[-6.0, 1.0], [0.0, 5.9]]])).tolist()
    [True, False]
    """
    large = jnp.abs(hidden.reshape(hidden.shape[0], -1, hidden.shape[-1])) >= jnp.float32(magnitude)
    in_layers = jnp.mean(jnp.any(large, axis=1).astype(jnp.float32), axis=0)
    in_tokens = jnp.mean(large.astype(jnp.float32), axis=(0, 1))
    return (in_layers >= jnp.float32(layers)) & (in_tokens >= jnp.float32(tokens))


@jax.jit
def massive_activations(hidden: Array, magnitude: float = 100.0, ratio: float = 1000.0) -> Array:
    """Which values of a hidden state are massive activations (Sun et al. 2024, arXiv:2402.17762; catalogue T4).

    Section 2: its magnitude surpasses 100 and is at least, or around, 1000 times the median magnitude of its hidden
    state. "Around" is a matter of `ratio`.

    Args:
        hidden: one layer's hidden state, any shape; its median is over all of it.
        magnitude: what a massive activation surpasses.
        ratio: how many medians it has at least.

    Returns:
        Boolean of the same shape.

    >>> massive_activations(jnp.array([[0.1, -0.1, 0.1], [0.05, -150.0, 0.2]])).tolist()
    [[False, False, False], [False, True, False]]
    """
    size = jnp.abs(hidden.astype(jnp.float32))
    return (size > jnp.float32(magnitude)) & (size >= jnp.float32(ratio) * jnp.median(size))


@jax.jit
def outlier_tokens(x: Array, ratio: float = 64.0) -> Array:
    """Which tokens are outliers by PrefixQuant's definition (arXiv:2410.05265, equation 3): max / median > `ratio`.

    Args:
        x: activations [..., tokens, channels] of one sequence, or of several, each with a median of its own.
        ratio: the least quotient of a token's largest magnitude and the median of them over the sequence.

    Returns:
        Boolean [..., tokens].

    >>> outlier_tokens(jnp.array([[1.0, 0.0], [0.0, -200.0], [2.0, 1.0]])).tolist()
    [False, True, False]
    """
    size = jnp.max(jnp.abs(x.astype(jnp.float32)), axis=-1)
    return size > jnp.float32(ratio) * jnp.median(size, axis=-1, keepdims=True)


class SuperWeights(NamedTuple):
    """The largest output of each layer's matrix and the weight behind it; every array is [layers].

    `token`, `row`, `column`: output `column` of `token` is the largest, and input `row` is that token's largest, so the
    weight is w[row, column]. `input` and `output` are these two numbers, `share` is input * weight / output: how much
    of the spike that one weight makes. `found`: the output stands out among the layers.
    """

    token: Array
    row: Array
    column: Array
    input: Array
    output: Array
    share: Array
    found: Array


@jax.jit
def super_weights(x: Array, w: Array, ratio: float = 20.0) -> SuperWeights:
    """Super weights by one forward pass (Yu et al. 2024, arXiv:2411.07191, section 3.1; catalogue T6, I9).

    Where both an input X_ik and an output Y_ij of a down projection are far larger than all others, Y_ij is X_ik W_jk
    but for a remainder: the spikes give row and column of the weight. The authors read the spikes off a plot over the
    layers; here a layer has one if its largest output is `ratio` times the median of the layers' largest outputs. They
    repeat after removing each until no spike is left: set w[layer, row, column] to zero, run the model again, and ask
    again.

    Args:
        x: inputs of the down projections [layers, tokens, K].
        w: their weights [layers, K, N].
        ratio: how far an output must stand out.

    >>> w = jnp.ones((3, 2, 2)).at[1, 0, 1].set(50.0)
    >>> found = super_weights(jnp.array([[[1.0, 1.0]], [[9.0, 1.0]], [[1.0, 1.0]]]), w)
    >>> found.found.tolist(), int(found.row[1]), int(found.column[1]), round(float(found.share[1]), 3)
    ([False, True, False], 0, 1, 0.998)
    """
    x, w = x.astype(jnp.float32), w.astype(jnp.float32)
    y = jnp.einsum("ltk,lkn->ltn", x, w)
    layer = jnp.arange(x.shape[0])
    token, column = jnp.unravel_index(jnp.argmax(jnp.abs(y).reshape(x.shape[0], -1), axis=-1), y.shape[1:])
    row = jnp.argmax(jnp.abs(x[layer, token]), axis=-1)
    spike, source = y[layer, token, column], x[layer, token, row]
    share = source * w[layer, row, column] / jnp.where(spike == 0, jnp.float32(1), spike)
    size = jnp.abs(spike)
    return SuperWeights(token, row, column, source, spike, share, size >= jnp.float32(ratio) * jnp.median(size))
