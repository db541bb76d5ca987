"""Cutting a tree into what an optimizer may change and what it may not, and putting it together again."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp

from qjax.operators.factored import Factored
from qjax.operators.latent import Latent
from qjax.operators.operator import Map
from qjax.qarray import QArray

KINDS = ("lora", "latent", "scales", "offsets", "tables", "maps", "array")
"""What a float leaf belongs to: a Factored, a Latent, a QArray's scales, offset or table, a map, or none of them."""


def trainable(tree: Any, where: str | re.Pattern[str] | Callable[[str, Any], bool]) -> tuple[Any, Any]:
    """(train, frozen): two trees like `tree`, each leaf in one of them and None in the other.

    `where`: a kind ("lora", "latent", "scales", "offsets", "tables", "maps", "array"), a glob over paths
    ("layers/*/attn/*"), a compiled regular expression, or a predicate (path, leaf). Codes and integer leaves are always
    frozen, so an optimizer never sees one. ValueError if nothing is selected. `merge` is the inverse.

    >>> import jax.numpy as jnp
    >>> op = Factored(jnp.ones((4, 1)), jnp.ones((1, 2)))
    >>> train, frozen = trainable({"q": op, "norm": jnp.ones(2)}, where="lora")
    >>> train["norm"] is None and frozen["q"].a is None
    True
    """
    leaves, structure = jax.tree.flatten(tree)
    found = list(_kinds(tree, "array"))
    paths = [jax.tree_util.keystr(p, simple=True, separator="/") for p, _ in jax.tree_util.tree_leaves_with_path(tree)]
    chosen = [
        kind != "codes" and _trainable(leaf) and _selected(where, path, kind, leaf)
        for leaf, kind, path in zip(leaves, found, paths, strict=True)
    ]
    if not any(chosen):
        raise ValueError(
            f"trainable: nothing matches {where!r}; kinds here: {sorted({*found} - {'codes'})}, paths like {paths[:3]}"
        )
    return (
        jax.tree.unflatten(structure, [leaf if c else None for leaf, c in zip(leaves, chosen, strict=True)]),
        jax.tree.unflatten(structure, [None if c else leaf for leaf, c in zip(leaves, chosen, strict=True)]),
    )


def merge(train: Any, frozen: Any) -> Any:
    """The tree `trainable` cut; ValueError where the two trees do not belong together."""
    a, structure = jax.tree.flatten(train, is_leaf=lambda x: x is None)
    b, other = jax.tree.flatten(frozen, is_leaf=lambda x: x is None)
    if structure != other:
        raise ValueError("merge: the two trees differ in structure; they must come from one call of trainable")
    if any(x is not None and y is not None for x, y in zip(a, b, strict=True)):
        raise ValueError("merge: a leaf is in both trees")
    return jax.tree.unflatten(structure, [y if x is None else x for x, y in zip(a, b, strict=True)])


def _selected(where: Any, path: str, kind: str, leaf: Any) -> bool:
    if isinstance(where, re.Pattern):
        return where.search(path) is not None
    if callable(where):
        return bool(where(path, leaf))
    return kind == where if where in KINDS else fnmatch.fnmatchcase(path, where)


def _trainable(leaf: Any) -> bool:
    """Floating and at least 16 bits: narrower floats are codes or stored scales, not parameters."""
    dtype = jnp.result_type(leaf)
    return bool(jnp.issubdtype(dtype, jnp.floating)) and dtype.itemsize >= 2


def _kinds(node: Any, kind: str) -> Iterator[str]:
    """The kind of every leaf, in flattening order."""
    parts = jax.tree_util.tree_leaves_with_path(node, is_leaf=lambda x: x is not node)
    if len(parts) == 1 and not parts[0][0]:
        yield kind
        return
    if isinstance(node, Factored):
        kind = "lora"
    elif isinstance(node, Latent):
        kind = "latent"
    elif isinstance(node, Map):
        kind = "maps"
    for (key, *_), child in parts:
        below = kind
        if isinstance(node, QArray) and kind != "codes":
            below = {"codes": "codes", "scales": "scales", "offset": "offsets", "table": "tables"}[key.name]
        yield from _kinds(child, below)
