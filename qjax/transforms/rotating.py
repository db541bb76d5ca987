"""Rotations: of a whole network (its stream, its heads, what its down projections read), or of each input by itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from qjax.equivalence.rotation import rotate_stream, rotate_values
from qjax.operators import Hadamard, Kronecker, Map
from qjax.operators.maps.hadamard import hadamard_factors, hadamard_matrix
from qjax.trace.paths import named_key
from qjax.trace.topology import Topology, Values
from qjax.transforms.contract import Edit, Stage, Transform, stateless
from qjax.transforms.leaves import float_core
from qjax.transforms.scaling import by_input

SCORES = ("*/attn/query", "*/attn/key")


def rotate(
    *,
    stream: bool = True,
    values: bool = True,
    scores: bool = True,
    down: bool = True,
    heads: bool = True,
    block: int | None = None,
    draw: int = 0,
    sites: tuple[str, ...] = SCORES,
) -> Transform:
    """Spread outliers over all channels by random Hadamard rotations, with the network's function unchanged.

    `stream` turns the residual stream (R1) and `values` each head between v and o (R2): both disappear in the weights,
    after the gains of the norms; a tied embedding becomes two matrices. `scores` turns queries and keys behind RoPE
    (R3, taps on `sites`), `down` what each down projection reads (R4) and `heads` the same channel of all heads before
    the output projection: these stay online, at n log n a token. A number of heads that no Hadamard matrix has is left
    alone, with a warning in the report. `block` mixes only so many channels at a time in R1 and R4 (H7: the blocks of
    an MX format), else all.

    Signs are drawn from the run's key and count no bits; each `draw` has its own. Comes before every method that
    quantizes.

    Source: QuaRot (arXiv:2404.00456), sections 3 and 4; SpinQuant (arXiv:2405.16406), figure 1. Catalogue H1, H2, H7.

    Raises:
        ValueError: nothing to turn; a model whose wiring is unknown, or without sites for `scores`; a width without a
            Hadamard matrix.
    """
    switches = {"R1": stream, "R2": values, "R3": scores, "R4": down, "heads": heads}
    chosen = [name for name, on in switches.items() if on]
    if not chosen:
        raise ValueError("rotate: stream, values, scores, down and heads are all False, nothing is left to turn")

    def edit(stage: Stage, key: jax.Array) -> Edit:
        wiring = wired("rotate", stage, scores)
        key = jax.random.fold_in(key, draw) if draw else key
        leaves, rewritten = dict(stage.reference), {}
        if stream:
            random = Hadamard.random(named_key(key, "stream"), width(stage, wiring), block)
            rewritten |= rotate_stream(leaves, wiring, random)
        if values and wiring.values:
            random = Hadamard.random(named_key(key, "values"), wiring.values[0].head_dim)
            rewritten |= rotate_values(leaves | rewritten, wiring, random)
        return turned(stage, wiring, key, rewritten, sites if scores else (), down, heads, block)

    size = "" if block is None else f" {block}"
    return stateless(f"rotate {' '.join(chosen)}{size}{f' draw {draw}' if draw else ''}", "model", edit)


def rotate_inputs(block: int | None = None) -> Transform:
    """A random Hadamard rotation in front of every target, on `block` channels at a time or on all of them.

    Leaves that share an input share its rotation. Everything stays online (n log n a token), so no wiring is needed
    and any function can be turned; blocks as wide as a format's keep an outlier inside its own block. Signs are drawn
    from the run's key and count no bits. `rotate` folds what a network's wiring allows instead.

    Source: the study of integer and floating point formats (arXiv:2510.25602); catalogue H1, H7.

    Raises:
        ValueError: channels that are no multiple of `block`, or a size that has no Hadamard matrix; names the leaf.
    """

    def edit(stage: Stage, key: jax.Array) -> Edit:
        online: dict[str, Map] = {}
        for first, *others in by_input(stage).values():
            _, w = float_core(first, stage.params[first], stage.uses[first])
            size = w.shape[-2]
            if block is not None and size % block:
                raise ValueError(f"rotate_inputs: {first} reads {size} channels, no multiple of block = {block}")
            try:
                hadamard_factors(block or size)
            except ValueError as e:
                raise ValueError(f"rotate_inputs: {first} reads {size} channels: {e}; give a block") from e
            online |= dict.fromkeys((first, *others), _drawn(key, first, w.shape[:-1], block))
        return Edit(equivalence=online)

    return stateless(f"rotate inputs {block or 'whole'}", "block", edit)


def wired(name: str, stage: Stage, scores: bool) -> Topology:
    """The wiring a rotation of the network needs, or ValueError."""
    if stage.topology is None:
        raise ValueError(
            f"{name}: which leaves share a stream is not known of this function; give run(topology=Topology(...))"
        )
    if scores and not stage.topology.scores:
        raise ValueError(f"{name}: the topology lists no queries and keys; give scores=False")
    return stage.topology


def width(stage: Stage, wiring: Topology) -> int:
    """Channels of the residual stream, or ValueError where the wiring has none."""
    if not wiring.writers:
        raise ValueError(
            "the topology lists no writers of the stream, so it cannot turn (a norm behind a layer's parts fixes its "
            "channels); rotate(stream=False) turns the rest"
        )
    port = wiring.writers[0]
    return stage.reference[port.path].shape[port.axis]


def turned(
    stage: Stage,
    wiring: Topology,
    key: jax.Array,
    rewritten: Mapping[str, Any],
    sites: tuple[str, ...],
    down: bool,
    heads: bool,
    block: int | None = None,
) -> Edit:
    """The edit of a rotated network: what was rewritten, the rotations that stay online, taps on the sites."""
    online, unmixed = online_rotations(stage.reference, wiring, key, down, heads, block)
    taps = {site: Hadamard(None, wiring.scores[0].head_dim) for site in sites}
    rows: dict[str, Any] = {path: {} for path in stage.targets if path in rewritten or path in online}
    for path in unmixed:
        if path in stage.targets:
            rows[path] = {"warnings": ("its heads are not mixed: no Hadamard matrix has their number of rows",)}
    return Edit(rewritten=rewritten, equivalence=online, taps=taps, rows=rows)


def online_rotations(
    leaves: Mapping[str, Any], wiring: Topology, key: jax.Array, down: bool, heads: bool, block: int | None = None
) -> tuple[dict[str, Map], list[str]]:
    """Random Hadamard maps before down projections and across heads, by leaf; the leaves whose heads stay unmixed."""
    online: dict[str, Map] = {}
    for product in wiring.products if down else ():
        port = product.down
        shape = jnp.moveaxis(leaves[port.path], port.axis, -2).shape
        online[port.path] = _drawn(key, port.path, shape[:-1], block)
    unmixed = []
    for v in wiring.values if heads else ():
        m = across_heads(v, jnp.moveaxis(leaves[v.o.path], v.o.axis, -2).shape[:-2])
        if m is None:
            unmixed.append(v.o.path)
        else:
            online[v.o.path] = m
    return online, unmixed


def _drawn(key: jax.Array, path: str, shape: tuple[int, ...], block: int | None) -> Hadamard:
    """A rotation of inputs [..., K] that is a leaf's own."""
    signs = jax.random.rademacher(named_key(key, path), shape, jnp.int8)
    return Hadamard(signs, shape[-1] if block is None else block)


def across_heads(values: Values, stacked: tuple[int, ...] = ()) -> Kronecker | None:
    """Channel i of every head mixed with channel i of the others, the same for all entries of the axes `stacked`.

    None where no Hadamard matrix has as many rows as there are heads.
    """
    try:
        mixing = hadamard_matrix(values.heads)
    except ValueError:
        return None
    factors = jnp.asarray(mixing), jnp.eye(values.head_dim, dtype=jnp.float32)
    return Kronecker(tuple(jnp.broadcast_to(f, (*stacked, *f.shape)) for f in factors), orthogonal=True, drawn=True)
