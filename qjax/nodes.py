"""Dataclasses as pytree nodes: what every class of ours that jit, vmap and scan walk through is registered with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import Any, TypeVar

import jax

C = TypeVar("C", bound=type)


def node(cls: C) -> C:
    """Registers a dataclass as a pytree node: its fields are children, those with metadata static=True are structure.

    As `jax.tree_util.register_dataclass`, but the class is part of the structure. Nodes which that registers are equal
    where static fields and the number of children are, and `jit` of jax 0.10 may run for a `Rows` what it compiled for
    a `Sum` of the same shapes.

    >>> import jax.numpy as jnp
    >>> @node
    ... @dataclasses.dataclass(frozen=True)
    ... class Scale:
    ...     by: jax.Array
    >>> float(jax.grad(lambda scale: 3 * scale.by)(Scale(jnp.array(2.0))).by)
    3.0
    """
    fields = dataclasses.fields(cls)
    data = [f.name for f in fields if not f.metadata.get("static")]
    static = [f.name for f in fields if f.metadata.get("static")]
    keys = [jax.tree_util.GetAttrKey(name) for name in data]

    def flatten(x: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        return tuple([getattr(x, name) for name in data]), tuple([getattr(x, name) for name in static])

    def flatten_with_keys(x: Any) -> tuple[tuple[Any, ...], tuple[Any, ...]]:
        children, structure = flatten(x)
        return tuple(zip(keys, children, strict=True)), structure

    def unflatten(structure: tuple[Any, ...], children: Iterable[Any]) -> Any:
        return cls(**dict(zip(data, children, strict=True)), **dict(zip(static, structure, strict=True)))

    jax.tree_util.register_pytree_with_keys(cls, flatten_with_keys, unflatten, flatten)
    return cls
