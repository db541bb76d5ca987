"""BASQ: several learned clips of one activation, each under its own decay, of which a search picks one (B15).

Catalogue B15. Kim, Park and Yoo, "BASQ: branch-wise activation-clipping search quantization for sub-4-bit neural
networks", ECCV 2022, and its code. Which L2 penalty serves PACT's clip best differs from layer to layer: every layer
holds a clip for each of a few penalties, a training step draws a branch for each layer, and an evolutionary search
(`qjax.allocate.evolve`) then picks a branch for each layer.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array

from qjax.ranges.learned_clip import pact

DECAYS = (1e-2, 5e-3, 1e-3, 5e-4, 1e-4, 5e-5, 1e-5)
"""The authors' seven penalties."""


def branch_pact(x: Array, clips: Array, branch: Array, bits: int) -> Array:
    """PACT with the clip of one branch; the clips of the others get no gradient.

    x      : float32, any shape.
    clips  : [branches] float32, positive.
    branch : int32 scalar, drawn anew in each step of training, then fixed.

    >>> import jax
    >>> x, clips = jnp.array([1.0, 7.0, 9.0]), jnp.array([6.0, 8.0])
    >>> jax.grad(lambda clips: branch_pact(x, clips, 1, bits=2).sum())(clips).tolist()
    [0.0, 1.0]
    """
    return pact(x, clips[branch], bits)


def clip_decay(clips: Array, decays: Array) -> Array:
    """sum decay * clip^2 / 2, to add to the loss: clips [..., branches] under the penalty of their branch [branches].

    >>> import jax
    >>> jax.grad(clip_decay)(jnp.array([[6.0, 8.0]]), jnp.array([0.5, 0.25])).tolist()
    [[3.0, 2.0]]
    """
    return jnp.sum(clips * clips * decays.reshape((1,) * (clips.ndim - 1) + (-1,))) / 2
