"""Rearranging the leaves of a tree for the kernels of a platform, and back."""

from __future__ import annotations

from typing import Any

import jax

from qjax.operators import packed
from qjax.operators.packed import LAYOUTS, Packed
from qjax.qarray import QArray


def prepare(tree: Any, target: str = "cpu") -> Any:
    """tree with every QArray that a layout of `target` fits replaced by a Packed.

    The others stay (`explain` shows why). Layouts fit matrices [batch..., K, N]. Do this once, after quantization:
    matmul never repacks. ValueError for an unknown target or when no leaf fits.
    """
    layouts = [name for name, layout in LAYOUTS.items() if layout.target == target]
    if not layouts:
        raise ValueError(f"no layout for target {target!r}: know {sorted({x.target for x in LAYOUTS.values()})}")
    changed = 0

    def rearrange(leaf: Any) -> Any:
        nonlocal changed
        fitting = [n for n in layouts if LAYOUTS[n].refuse(leaf) is None] if isinstance(leaf, QArray) else []
        changed += bool(fitting)
        return packed.pack(leaf, fitting[0]) if fitting else leaf

    result = jax.tree.map(rearrange, tree, is_leaf=lambda x: isinstance(x, (QArray, Packed)))
    if not changed:
        raise ValueError(
            f"prepare: no QArray of this tree fits a layout of {target!r} ({', '.join(layouts)}); see explain"
        )
    return result


def unpack(tree: Any) -> Any:
    """tree with every Packed replaced by the QArray it was made from, bit for bit."""
    return jax.tree.map(
        lambda leaf: packed.unpack(leaf) if isinstance(leaf, Packed) else leaf,
        tree,
        is_leaf=lambda x: isinstance(x, Packed),
    )
