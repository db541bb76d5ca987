"""How a pass walks a model: as one block, or cut at the first use of each group of parameters, layer slices included.

A leaf that a scan stacks over layers is handed to a block one slice at a time, under the name "path[i]"; `restacked`
puts the slices together again, as one operator where their structure agrees and as `Stacked` where it does not.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from qjax import dispatch
from qjax.operators import Stacked
from qjax.trace.paths import leaves_with_paths, replace_leaves
from qjax.trace.stages import stages
from qjax.trace.uses import Uses
from qjax.transforms.edits import Working
from qjax.transforms.programs import Block


def whole(fn: Callable[[Any, Any], Any], params: Any) -> Block:
    """The model as one block: its input is a batch."""
    ids = tuple(leaves_with_paths(params))
    return Block(
        "model", ids, lambda leaves, batch: fn(replace_leaves(params, dict(zip(ids, leaves, strict=True))), batch)
    )


def cut(
    fn: Callable[[Any, Any], Any], params: Any, batch: Any, by: str
) -> tuple[tuple[Block, ...], Callable[[Any], Any], Callable[[Any], Any]]:
    """The model cut by groups of parameters: its blocks, and the functions around them.

    The first makes the first block's input of a batch, the second the model's output of the last block's.
    """
    segments = stages(fn, params, batch, by=by)
    blocks = tuple(
        Block(s.name, tuple(_slice_name(path, i) for path, i in s.paths), s.fn, s.kind == "group") for s in segments
    )
    return blocks, segments.begin, segments.finish


def _slice_name(path: str, i: int | None) -> str:
    return path if i is None else f"{path}[{i}]"


def base(name: str) -> str:
    """The stored leaf behind a slice's name."""
    return name[: name.rindex("[")] if name.endswith("]") else name


def sliced(working: Working, blocks: tuple[Block, ...]) -> Working:
    """With an entry for every slice that a block reads."""
    names = [i for b in blocks for i in b.ids if i not in working.params]

    def entries(leaves: Mapping[str, Any]) -> dict[str, Any]:
        return {**leaves, **{n: _entry(leaves[base(n)], int(n[len(base(n)) + 1 : -1])) for n in names}}

    return dataclasses.replace(working, params=entries(working.params), reference=entries(working.reference))


def _entry(leaf: Any, i: int) -> Any:
    return dispatch.index(leaf, i) if dispatch.is_operator(leaf) else leaf[i]


def restacked(before: Working, after: Working, uses: Uses) -> Working:
    """Slices put back into their stacks; the entries of slices are dropped."""

    def gather(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, Any]:
        out = {path: leaf for path, leaf in new.items() if path in old or base(path) == path}
        stacks: dict[str, list[str]] = {}
        for name in new:
            if name not in out:
                stacks.setdefault(base(name), []).append(name)
        for path, names in stacks.items():
            layers = [new[n] for n in sorted(names, key=lambda n: int(n[len(path) + 1 : -1]))]
            if any(dispatch.is_operator(layer) for layer in layers):
                out[path] = _stack(path, layers, old[path], uses)
        return out

    return dataclasses.replace(
        after, params=gather(before.params, after.params), reference=gather(before.reference, after.reference)
    )


def _stack(path: str, layers: list[Any], stored: Any, uses: Uses) -> Any:
    """Layers of one stack as one leaf of the stored shape."""
    if len(layers) != stored.shape[0]:
        raise ValueError(
            f"{path}: {len(layers)} of its {stored.shape[0]} layers are used; the rest cannot be kept in one leaf"
        )
    use = uses.matrix(path)
    # The leading axis is the stack's; what is left is one layer's use (axes count from the end).
    rank = len(use.shape)
    one = dataclasses.replace(use, shape=use.shape[1:], batch_axes=tuple(a for a in use.batch_axes if a != -rank))
    matrices = [one.to_matrix(layer) for layer in layers]
    structures = {(jax.tree.structure(m), tuple(jnp.shape(x) for x in jax.tree.leaves(m))) for m in matrices}
    joined = jax.tree.map(lambda *xs: jnp.stack(xs), *matrices) if len(structures) == 1 else Stacked(tuple(matrices))
    return use.from_matrix(joined)
