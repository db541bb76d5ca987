"""Rotations of a whole network: its residual stream, its heads, and what its down projections read."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from qjax.equivalence.rotation import rotate_stream, rotate_values
from qjax.operators import Hadamard
from qjax.trace.paths import named_key
from qjax.transforms.contract import Edit, Stage, Transform, stateless

SCORES = ("*/attn/query", "*/attn/key")


def rotate(
    *,
    stream: bool = True,
    values: bool = True,
    scores: bool = True,
    down: bool = True,
    block: int | None = None,
    sites: tuple[str, ...] = SCORES,
) -> Transform:
    """Spread outliers over all channels by random Hadamard rotations, with the network's function unchanged.

    `stream` turns the residual stream (R1) and `values` each head between v and o (R2): both disappear in the weights,
    after the gains of the norms; a tied embedding becomes two matrices. `scores` turns queries and keys behind RoPE
    (R3, taps on `sites`) and `down` what each down projection reads (R4): both stay online, at n log n a token.
    `block` mixes only so many channels at a time in R1 and R4 (H7: the blocks of an MX format), else all.

    Signs are drawn from the run's key and count no bits. QuaRot's mixing across heads in front of o is left out: it
    needs a Hadamard matrix of as many rows as there are heads. Comes before every method that quantizes.

    Source: QuaRot (arXiv:2404.00456), sections 3 and 4; SpinQuant (arXiv:2405.16406), figure 1. Catalogue H1, H2, H7.

    Raises:
        ValueError: nothing to turn; a model whose wiring is unknown, or without sites for `scores`; a width without a
            Hadamard matrix.
    """
    chosen = [name for name, on in zip(("R1", "R2", "R3", "R4"), (stream, values, scores, down), strict=True) if on]
    if not chosen:
        raise ValueError("rotate: stream, values, scores and down are all False, nothing is left to turn")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        wiring = stage.topology
        if wiring is None:
            raise ValueError(
                "rotate: which leaves share a stream is not known of this function; give run(topology=Topology(...))"
            )
        if scores and not wiring.scores:
            raise ValueError("rotate: the topology lists no queries and keys; give scores=False")
        leaves = dict(stage.reference)
        rewritten: dict[str, Any] = {}

        def turn(new: dict[str, Any]) -> None:
            rewritten.update(new)
            leaves.update(new)

        if stream:
            port = wiring.writers[0]
            width = leaves[port.path].shape[port.axis]
            turn(rotate_stream(leaves, wiring, Hadamard.random(named_key(key, "stream"), width, block)))
        if values and wiring.values:
            turn(rotate_values(leaves, wiring, Hadamard.random(named_key(key, "values"), wiring.values[0].head_dim)))
        online = {}
        for product in wiring.products if down else ():
            port = product.down
            *stacked, width, _ = jnp.moveaxis(leaves[port.path], port.axis, -2).shape
            signs = jax.random.rademacher(named_key(key, port.path), (*stacked, width), jnp.int8)
            online[port.path] = Hadamard(signs, width if block is None else block)
        heads = wiring.scores[0].head_dim if scores else 1
        taps = {site: Hadamard(None, heads) for site in sites} if scores else {}
        rows = {path: {} for path in stage.targets if path in rewritten or path in online}
        return Edit(rewritten=rewritten, equivalence=online, taps=taps, rows=rows)

    size = "" if block is None else f" {block}"
    return stateless(f"rotate {' '.join(chosen)}{size}", "model", edit)
