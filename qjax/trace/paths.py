"""Leaves of a parameter tree by name: "layers/3/attn/q"."""

from __future__ import annotations

import fnmatch
import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from qjax.dispatch import is_operator

Where = str | Sequence[str] | Callable[[str], bool]


def is_leaf(x: Any) -> bool:
    """Whether a tree stops here: operators and quantized arrays are single leaves of a parameter tree."""
    return is_operator(x)


def path_str(keypath: Sequence[Any]) -> str:
    """The name of a key path.

    >>> tree = {"layers": [{"q": 0.0}]}
    >>> [path_str(p) for p, _ in jax.tree_util.tree_leaves_with_path(tree)]
    ['layers/0/q']
    """
    return jax.tree_util.keystr(tuple(keypath), simple=True, separator="/")


def leaves_with_paths(tree: Any) -> dict[str, Any]:
    """{path: leaf} in tree order; operators count as one leaf. ValueError when two leaves have the same name."""
    leaves: dict[str, Any] = {}
    for keypath, leaf in jax.tree_util.tree_leaves_with_path(tree, is_leaf=is_leaf):
        path = path_str(keypath)
        if path in leaves:
            raise ValueError(f"two leaves of the tree are called {path!r}: rename one, a path must name one leaf")
        leaves[path] = leaf
    return leaves


def replace_leaves(tree: Any, new: Mapping[str, Any]) -> Any:
    """The tree with the named leaves replaced (an array by an operator, too). ValueError for a path that names no leaf.

    >>> replace_leaves({"a": 1, "b": 2}, {"b": 3})
    {'a': 1, 'b': 3}
    """
    seen: set[str] = set()

    def swap(keypath: Any, leaf: Any) -> Any:
        path = path_str(keypath)
        seen.add(path)
        return new.get(path, leaf)

    out = jax.tree_util.tree_map_with_path(swap, tree, is_leaf=is_leaf)
    if missing := sorted(set(new) - seen):
        raise ValueError(f"no leaf is called {missing[0]!r}; the tree has {_some(sorted(seen))}")
    return out


def add_leaves(tree: Any, new: Mapping[str, Any]) -> Any:
    """The tree with more leaves, put into the dicts it has. ValueError where a path leads through anything else.

    >>> add_leaves({"a": {"b": 1}}, {"a/c": 2})
    {'a': {'b': 1, 'c': 2}}
    """
    for path, leaf in new.items():
        tree = _put(tree, path.split("/"), path, leaf)
    return tree


def _put(node: Any, parts: Sequence[str], path: str, leaf: Any) -> Any:
    head, *rest = parts
    if not isinstance(node, dict) or (rest and head not in node):
        raise ValueError(f"{path!r} cannot be added: there is no dict at {head!r} to hold it")
    return {**node, head: _put(node[head], rest, path, leaf) if rest else leaf}


def select(paths: Sequence[str], where: Where) -> tuple[str, ...]:
    """The paths a glob ("layers/*/attn/*"), a list of globs or a predicate picks. ValueError when a glob matches none.

    >>> select(["layers/0/q", "head"], "layers/*")
    ('layers/0/q',)
    """
    if callable(where):
        chosen = tuple(p for p in paths if where(p))
        if not chosen:
            raise ValueError(f"where= matched no leaf; the leaves are {_some(paths)}")
        return chosen
    globs = (where,) if isinstance(where, str) else tuple(where)
    for glob in globs:
        if not any(fnmatch.fnmatchcase(p, glob) for p in paths):
            raise ValueError(f"where= pattern {glob!r} matched no leaf; the leaves are {_some(paths)}")
    return tuple(p for p in paths if any(fnmatch.fnmatchcase(p, glob) for glob in globs))


def named_key(key: jax.Array, name: str) -> jax.Array:
    """A key of its own for everything that has a name (a leaf, a stage), the same in whatever order they are met."""
    return jax.random.fold_in(key, zlib.crc32(name.encode()) & 0x7FFFFFFF)


def _some(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:8])) + (", ..." if len(names) > 8 else "")
