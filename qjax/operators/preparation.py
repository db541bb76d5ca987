"""Rearranging the leaves of a tree for the kernels of a platform, and back."""

from __future__ import annotations

from typing import Any

import jax

from qjax.kernels.tpu import tiles
from qjax.operators import packed
from qjax.operators.packed import LAYOUTS, Packed
from qjax.qarray import QArray


def prepare(tree: Any, target: str = "cpu") -> Any:
    """tree with every QArray that a layout of `target` fits replaced by a Packed, in the fastest this machine can use.

    The others stay (`explain` shows why, and why a leaf is not in a faster layout). Layouts fit matrices
    [batch..., K, N]. Do this once, after quantization: matmul never repacks. On cpu the first call builds a kernel if
    there is a C++ compiler. "tpu-v4" is that chip, with layouts of its own in front of those of all TPUs; on one, so is
    "tpu". ValueError for an unknown target or when no leaf fits.
    """
    layouts = _layouts(target)
    if not layouts:
        raise ValueError(f"no layout for target {target!r}: know {sorted({x.target for x in LAYOUTS.values()})}")
    changed = 0

    def rearrange(leaf: Any) -> Any:
        nonlocal changed
        names = layouts if isinstance(leaf, QArray) else ()
        fitting = next((n for n in names if LAYOUTS[n].refuse(leaf) is None and LAYOUTS[n].missing() is None), None)
        changed += fitting is not None
        return leaf if fitting is None else packed.pack(leaf, fitting)

    result = jax.tree.map(rearrange, tree, is_leaf=lambda x: isinstance(x, (QArray, Packed)))
    if not changed:
        raise ValueError(
            f"prepare: no QArray of this tree fits a layout of {target!r} ({', '.join(layouts)}); see explain"
        )
    return result


def _layouts(target: str) -> list[str]:
    """The names of the layouts tried for a target, in order: those of one chip in front of those of its kind."""
    kind, _, chip = target.partition("-")
    chip = (tiles.chip() or "") if target == "tpu" else chip
    own = [name for name, layout in LAYOUTS.items() if layout.target == f"{kind}-{chip}"]
    return own + [name for name, layout in LAYOUTS.items() if layout.target == kind and (own or target == kind)]


def unpack(tree: Any) -> Any:
    """tree with every Packed replaced by the QArray it was made from, bit for bit."""
    return jax.tree.map(
        lambda leaf: packed.unpack(leaf) if isinstance(leaf, Packed) else leaf,
        tree,
        is_leaf=lambda x: isinstance(x, Packed),
    )
