"""What a learned rounding offers: a rule of `Latent` whose parameters are cut into what is learned and what is not."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any, Protocol, cast

import jax
import jax.numpy as jnp

from qjax.formats.format import Format
from qjax.operators.latent import Latent
from qjax.qarray import QArray


class Rule(Protocol):
    """Hashable and static: a published way of learning how a weight is rounded, for any format.

    `theta` is {"variables": ..., "constants": ...}; the optimizer sees the variables only.
    """

    @property
    def format(self) -> Format:
        """What the weight is rounded to."""
        ...

    def init(self, w: jax.Array, key: jax.Array) -> dict[str, Any]:
        """theta for `w` [batch..., K, N] at which the settled `forward` is rounding to nearest."""
        ...

    def forward(self, w: jax.Array, theta: Any) -> jax.Array:
        """The values used, [batch..., K, N] float32, differentiable in the variables."""
        ...

    def settle(self, theta: Any) -> Any:
        """theta with every relaxed choice made for good."""
        ...

    def penalty(self, theta: Any, progress: jax.Array) -> jax.Array:
        """What is added to the loss, scalar, in units of the loss of rounding to nearest."""
        ...

    def harden(self, w: jax.Array, theta: Any) -> QArray:
        """The quantized array with the values of `forward` at a settled theta, bit for bit."""
        ...


class Straight:
    """Parts of a rule whose forward pass is rounded already: nothing to settle, nothing to penalize."""

    def settle(self, theta: Any) -> Any:
        return theta

    def penalty(self, theta: Any, progress: jax.Array) -> jax.Array:
        del theta, progress
        return jnp.float32(0)


def is_latent(node: Any) -> bool:
    """Whether a node is a weight being learned."""
    return isinstance(node, Latent)


def rule_of(latent: Latent) -> Rule:
    """The learned rule of a weight."""
    return cast(Rule, latent.rule)


def latents(tree: Any) -> list[Latent]:
    """The weights being learned, in the order of the tree."""
    return [node for node in jax.tree.leaves(tree, is_leaf=is_latent) if is_latent(node)]


def with_variables(tree: Any, variables: tuple[Any, ...]) -> Any:
    """The tree with other variables in its latent weights, in the order of `latents`."""
    left: Iterator[Any] = iter(variables)

    def put(node: Any) -> Any:
        return dataclasses.replace(node, theta={**node.theta, "variables": next(left)}) if is_latent(node) else node

    return jax.tree.map(put, tree, is_leaf=is_latent)


def settled(tree: Any) -> Any:
    """The tree with every relaxed choice of its latent weights made for good."""

    def settle(node: Any) -> Any:
        return dataclasses.replace(node, theta=rule_of(node).settle(node.theta)) if is_latent(node) else node

    return jax.tree.map(settle, tree, is_leaf=is_latent)
