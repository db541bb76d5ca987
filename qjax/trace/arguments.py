"""From a function of trees to a jaxpr of arrays and back."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from qjax.trace import versions
from qjax.trace.paths import is_leaf, path_str


class Input(NamedTuple):
    """An array-like leaf of the arguments; `path` is its name within its argument, `first` says that is the first."""

    path: str
    first: bool
    leaf: Any

    @property
    def parameter(self) -> bool:
        """Whether it is a floating leaf of the first argument."""
        return self.first and bool(jnp.issubdtype(self.leaf.dtype, jnp.floating))


class Traced(NamedTuple):
    """A function on some arguments: its jaxpr, the inputs of it, and how its outputs become fn's result."""

    jaxpr: Any
    inputs: list[Input]
    rebuild: Callable[[Sequence[Any]], Any]


def traced(fn: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> Traced:
    """A function traced on arrays in place of array-like leaves (arrays, shapes, operators); others stay."""
    leaves, tree = jax.tree_util.tree_flatten_with_path((tuple(args), dict(kwargs)), is_leaf=is_leaf)
    moving = [i for i, (_, leaf) in enumerate(leaves) if is_leaf(leaf) or isinstance(leaf, ARRAYS)]
    result: list[Any] = []

    def flat(*values: Any) -> list[Any]:
        full = [leaf for _, leaf in leaves]
        for i, value in zip(moving, values, strict=True):
            full[i] = value
        a, k = jax.tree.unflatten(tree, full)
        out, out_tree = jax.tree.flatten(fn(*a, **k))
        arrays = [isinstance(o, jax.Array) for o in out]
        result[:] = [out_tree, [None if is_array else (o,) for o, is_array in zip(out, arrays, strict=True)]]
        return [o for o, is_array in zip(out, arrays, strict=True) if is_array]

    def spec(leaf: Any) -> Any:
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype) if is_leaf(leaf) else leaf

    closed = versions.trace(flat, *(spec(leaves[i][1]) for i in moving))

    def rebuild(outs: Sequence[Any]) -> Any:
        out_tree, static = result
        ready = (
            o if isinstance(o, jax.Array) else jnp.asarray(o, aval.dtype)
            for o, aval in zip(outs, closed.out_avals, strict=True)
        )
        return jax.tree.unflatten(out_tree, [next(ready) if s is None else s[0] for s in static])

    def named(keypath: Any, leaf: Any) -> Input:
        return Input(path_str(keypath[2:]), keypath[0].idx == 0 and keypath[1].idx == 0, leaf)

    return Traced(closed, [named(*leaves[i]) for i in moving], rebuild)


ARRAYS = (jax.Array, jax.ShapeDtypeStruct, np.ndarray, np.generic)
