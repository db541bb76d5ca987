"""Latent(w, theta, rule): the trainable stand-in for a quantized weight."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from qjax.formats.format import Format
from qjax.formats.spelling import as_format
from qjax.nodes import node
from qjax.operators.operator import Operator, product
from qjax.qarray import QArray
from qjax.quantization import fake_quantize, quantize


class Rule(Protocol):
    """How a latent weight becomes a quantized one: hashable, static. It owns the gradient of `forward`."""

    def forward(self, w: jax.Array, theta: Any) -> jax.Array:
        """The values used, [batch..., K, N]."""
        ...

    def harden(self, w: jax.Array, theta: Any) -> QArray:
        """The quantized array whose values `forward` used, bit for bit."""
        ...


@dataclass(frozen=True)
class StraightThrough:
    """Round to `format` forwards, pass the gradient through unchanged (arXiv:1308.3432); no parameters beside w."""

    format: Format

    def forward(self, w: jax.Array, theta: Any) -> jax.Array:
        return fake_quantize(w, self.format, axis=-2, batch_axes=w.ndim - 2)

    def harden(self, w: jax.Array, theta: Any) -> QArray:
        return quantize(w, self.format, axis=-2, batch_axes=w.ndim - 2)


@node
@dataclass(frozen=True, eq=False)
class Latent(Operator):
    """w [batch..., K, N] float and the rule's own parameters theta; multiplies by what `rule` makes of them.

    >>> import jax.numpy as jnp
    >>> latent = straight_through(jnp.ones((4, 2)), "int4_channel")
    >>> jax.grad(lambda op: op.matmul(jnp.ones((1, 4))).sum())(latent).w[0]
    Array([1., 1.], dtype=float32)
    """

    w: jax.Array
    theta: Any
    rule: Rule = field(metadata={"static": True})

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.w.shape)

    @property
    def dtype(self) -> np.dtype:
        return np.dtype(self.w.dtype)

    def matmul(self, x: jax.Array, *, dtype: Any = None, implementation: str | None = None) -> jax.Array:
        return product(x, self.affine()[0], dtype)

    def affine(self) -> tuple[jax.Array, jax.Array | None]:
        return self.rule.forward(self.w, self.theta), None

    def children(self) -> dict[str, Any]:
        named = jax.tree_util.tree_leaves_with_path({"w": self.w, "theta": self.theta})
        return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in named}


def straight_through(w: jax.Array, format: Format | str) -> Latent:
    """w [batch..., K, N] as a trainable leaf that is rounded to `format` in every forward pass."""
    return Latent(jnp.asarray(w), (), StraightThrough(as_format(format)))


def harden(tree: Any) -> Any:
    """Every Latent of the tree as the QArray it stood for: its values are the last forward's, bit for bit."""
    return jax.tree.map(
        lambda node: node.rule.harden(node.w, node.theta) if isinstance(node, Latent) else node,
        tree,
        is_leaf=lambda node: isinstance(node, Latent),
    )
