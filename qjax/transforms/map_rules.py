"""What may stand in front of an input to make it easy to round: families of invertible maps with numbers to learn.

A rule is hashable and static. It says where its variables start and which map they make; `learn_maps` learns them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import jax
import jax.numpy as jnp
from jax import lax

from qjax.operators import Block, BlockKronecker, Composed, Diag, Kronecker, Map, Shift
from qjax.transforms.smoothing import migration


class MapRule(Protocol):
    """A family of invertible maps of channels."""

    def init(self, low: jax.Array, high: jax.Array, ws: Sequence[jax.Array], key: jax.Array) -> dict[str, Any]:
        """Variables for an input whose channels lie in [low, high] `[batch..., K]`, read by ws `[batch..., K, N_i]`."""
        ...

    def map(self, variables: Any, progress: jax.Array) -> Map:
        """The map of the variables; `progress` is the share of the steps taken, 1 for what stays."""
        ...


@dataclass(frozen=True)
class Scales:
    """A scale for each channel, and with `shift` a shift before it: OmniQuant's learnable equivalent transformation.

    x -> (x - z) / s, from SmoothQuant's s with `alpha` (None: from 1, for inputs that were smoothed before) and from
    the middle z of the channel's range; |s| is at least 0.01, as in the authors' code (arXiv:2308.13137, section 3.3;
    catalogue G10).
    """

    alpha: float | None = 0.5
    shift: bool = False

    def init(self, low: jax.Array, high: jax.Array, ws: Sequence[jax.Array], key: jax.Array) -> dict[str, Any]:
        del key
        size = jnp.maximum(-low, high)
        start = {"scale": jnp.ones_like(size) if self.alpha is None else migration(size, ws, self.alpha)}
        return start | ({"shift": (low + high) / 2} if self.shift else {})

    def map(self, variables: Any, progress: jax.Array) -> Map:
        del progress
        scale = Diag(1 / _bounded(variables["scale"]))
        return Composed((Shift(-variables["shift"]), scale)) if self.shift else scale


@dataclass(frozen=True)
class Banded:
    """A matrix A for every `block` channels (None: one for all), unmasked from its diagonal outwards: AffineQuant.

    x -> (x / s) A^-1 with s as in `Scales`. A starts as the identity and is multiplied by 1 on its diagonal, by `share`
    on the diagonals up to the one that progress has reached and by 0 beyond, so that it stays diagonally dominant and
    hence invertible (arXiv:2403.12544, eq. 6-8; catalogue G11). The authors learn s as A's diagonal; apart, A keeps a
    good condition. Of heads (`block` = their width) the inverse disappears in the value projection, else it is online.
    """

    block: int | None = None
    share: float = 0.1
    alpha: float = 0.75

    def init(self, low: jax.Array, high: jax.Array, ws: Sequence[jax.Array], key: jax.Array) -> dict[str, Any]:
        del key
        *batch, k = low.shape
        n = k if self.block is None else self.block
        _divides(n, k)
        start = migration(jnp.maximum(-low, high), ws, self.alpha)
        return {"scale": start, "mixing": jnp.broadcast_to(jnp.eye(n), (*batch, k // n, n, n))}

    def map(self, variables: Any, progress: jax.Array) -> Map:
        a = variables["mixing"]
        n = a.shape[-1]
        far = jnp.abs(jnp.arange(n)[:, None] - jnp.arange(n)[None])
        reached = jnp.floor(jnp.float32(n - 1) * progress).astype(far.dtype)
        mask = jnp.where(far == 0, 1.0, jnp.where(far <= reached, jnp.float32(self.share), 0.0))
        masked = a * jnp.broadcast_to(mask, a.shape)
        return Composed((Diag(1 / _bounded(variables["scale"])), Block(jnp.linalg.inv(masked))))


@dataclass(frozen=True)
class Factors:
    """A scale and a Kronecker product of two matrices, of sizes as equal as their product allows: FlatQuant.

    x -> (x c) (P1 kron P2), from SmoothQuant's scale with `alpha` and random rotations (arXiv:2410.09426).
    """

    alpha: float = 0.3

    def init(self, low: jax.Array, high: jax.Array, ws: Sequence[jax.Array], key: jax.Array) -> dict[str, Any]:
        *batch, k = low.shape
        first = next(n for n in range(math.isqrt(k), 0, -1) if k % n == 0)
        drawn = (
            jax.random.orthogonal(own, n)
            for own, n in zip(jax.random.split(key), (first, k // first), strict=True)
        )  # fmt: skip
        factors = tuple(jnp.broadcast_to(r, (*batch, *r.shape)) for r in drawn)
        return {"scale": 1 / migration(jnp.maximum(-low, high), ws, self.alpha), "factors": factors}

    def map(self, variables: Any, progress: jax.Array) -> Map:
        del progress
        return Composed((Diag(variables["scale"]), Kronecker(tuple(variables["factors"]))))


@dataclass(frozen=True)
class BlockFactors:
    """A matrix G kron P_i for block i of the format, G [shared, shared] the same in all of them: BATQuant.

    No energy of an outlier leaves its block, as it does in a global rotation; nor need the matrix be one
    (arXiv:2603.16590; catalogue H5). All factors start as identities.
    """

    block: int = 32
    shared: int = 8

    def init(self, low: jax.Array, high: jax.Array, ws: Sequence[jax.Array], key: jax.Array) -> dict[str, Any]:
        del high, ws, key
        *batch, k = low.shape
        _divides(self.block, k)
        _divides(self.shared, self.block)
        own = self.block // self.shared
        return {
            "shared": jnp.broadcast_to(jnp.eye(self.shared), (*batch, self.shared, self.shared)),
            "own": jnp.broadcast_to(jnp.eye(own), (*batch, k // self.block, own, own)),
        }

    def map(self, variables: Any, progress: jax.Array) -> Map:
        del progress
        return BlockKronecker(variables["shared"], variables["own"])


def _bounded(s: jax.Array, least: float = 1e-2) -> jax.Array:
    """A scale that is not nearer to 0 than `least`, with the gradient passed straight through."""
    away = jnp.where(jnp.abs(s) < least, jnp.where(s < 0, -least, least), s)
    return s + lax.stop_gradient(away - s)


def _divides(block: int, k: int) -> None:
    if block < 1 or k % block:
        raise ValueError(f"learn_maps: blocks of {block} do not divide {k} channels; give another block")
