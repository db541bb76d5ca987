"""How an implementation of matmul, and a layout that one reads, are described and chosen for one quantized leaf."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qjax.qarray import Grid, QArray


class Implementation(NamedTuple):
    """One way to compute x @ W for a quantized leaf."""

    name: str
    refuse: Callable[[Any, int, str, Any], str | None]  # (leaf, tokens, platform, dtype of x) -> why not, or None
    prefer: Callable[[Any, int, str], bool]  # (leaf, tokens, platform) -> whether it is the fast choice there
    run: Callable[..., jax.Array]  # (x [batch..., tokens..., K], leaf, output dtype); ragged: (x, sizes, leaf, dtype)


class Layout(NamedTuple):
    """A storage layout for codes: the kernels that read it, and how to get there and back."""

    target: str
    refuse: Callable[[QArray], str | None]  # why it cannot hold an array, or None
    missing: Callable[[], str | None]  # why this machine lacks what it was made for, or None
    pack: Callable[[QArray], jax.Array]
    unpack: Callable[[jax.Array, Grid], jax.Array]
    core: Callable[[jax.Array, Grid], tuple[int, int]]  # logical (K, N)
    implementations: tuple[Implementation, ...]
    arrange: Callable[[Grid], Grid] = lambda grid: grid  # scales as the kernels read them
    restore: Callable[[Grid], Grid] = lambda grid: grid  # and back
    columns: Callable[[jax.Array, jax.Array], jax.Array] = lambda codes, ids: jnp.take(codes, ids, axis=-1)
    # (packed codes, ids [m]) -> those of the named outputs, in the layout; outputs up to its next whole tile follow
    ragged: tuple[Implementation, ...] = ()  # for rows sorted by entry of a batch of matrices


def choose(
    candidates: Sequence[Implementation],
    leaf: Any,
    tokens: int,
    platform: str,
    name: str | None = None,
    dtype: Any = jnp.float32,
) -> Implementation:
    """For x of `dtype`: the implementation called `name`, or the first preferred one, or the first that can run.

    Raises ValueError when `name` is unknown or cannot run, ExceptionGroup when nothing can.
    """
    refusals = {c.name: c.refuse(leaf, tokens, platform, dtype) for c in candidates}
    if name is not None:
        if name not in refusals:
            raise ValueError(
                f"no implementation {name!r} for {type(leaf).__name__} {leaf.shape}: know {list(refusals)}"
            )
        if refusals[name] is not None:
            raise ValueError(f"implementation {name!r} cannot run {type(leaf).__name__} {leaf.shape}: {refusals[name]}")
        return next(c for c in candidates if c.name == name)
    able = [c for c in candidates if refusals[c.name] is None]
    if not able:
        raise ExceptionGroup(
            f"no implementation runs {type(leaf).__name__} {leaf.shape} on {platform}",
            [ValueError(f"{n}: {why}") for n, why in refusals.items()],
        )
    return next((c for c in able if c.prefer(leaf, tokens, platform)), able[0])
