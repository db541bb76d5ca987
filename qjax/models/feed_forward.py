"""The feed-forward part of a layer, and the linear map it is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import Array
from jax.ad_checkpoint import checkpoint_name

from qjax.models.architecture import Architecture

ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "silu": jax.nn.silu,
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
}


def linear(weights: Mapping[str, Any], name: str, x: Array) -> Array:
    """x [..., in] times the kernel of that name, plus its bias where there is one."""
    y = x @ weights[name]
    bias = weights.get(f"{name}_bias")
    return y if bias is None else y + jnp.broadcast_to(bias, y.shape)


def feed_forward(arch: Architecture, weights: Mapping[str, Any], x: Array, site: str) -> Array:
    """down(activation(gate(x)) * up(x)) or down(activation(up(x))) of x [..., width]; `site` names what down reads."""
    product = ACTIVATIONS[arch.activation](linear(weights, "gate" if arch.gated else "up", x))
    product = checkpoint_name(product * linear(weights, "up", x) if arch.gated else product, site)
    return linear(weights, "down", product)
