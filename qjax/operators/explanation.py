"""Which implementation every quantized leaf takes, and why not another."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from qjax import dispatch
from qjax.operators import epilogues, rounded_inputs
from qjax.operators.columns import Columns
from qjax.operators.implementations import choose
from qjax.operators.operator import walk
from qjax.operators.packed import LAYOUTS, Packed
from qjax.operators.pre import Pre
from qjax.operators.sum import Sum
from qjax.qarray import QArray


class Choice(NamedTuple):
    """What matmul does for one leaf."""

    path: str
    shape: tuple[int, ...]
    format: str
    implementation: str
    refused: tuple[tuple[str, str], ...]  # (implementation, reason)
    dequantizes: bool


def choices(tree: Any, tokens: int = 1, platform: str | None = None, dtype: Any = jnp.float32) -> tuple[Choice, ...]:
    """One record for every quantized leaf of a tree or operator, for so many tokens on a platform (None: this one).

    Inputs are of `dtype`, or rounded where a `Quantize` stands in front of the leaf.
    """
    platform = jax.default_backend() if platform is None else platform
    found = []
    tops = jax.tree_util.tree_leaves_with_path(tree, is_leaf=dispatch.is_operator)
    for key, top in tops:
        nodes = list(walk(top, jax.tree_util.keystr(key, simple=True, separator="/")))
        parts = {id(part) for _, node in nodes if isinstance(node, Packed) for part in node.children().values()}
        pres = [node for _, node in nodes if isinstance(node, Pre)]
        maps = {id(node.op): node.T for node in pres}
        turns = {id(node.op.op): node.T for node in pres if isinstance(node.op, Pre)}
        sums = [node.ops for _, node in nodes if isinstance(node, (Sum, Columns))]
        terms = {id(ops[place]): ops for ops in sums if (place := epilogues.base(ops)) is not None}
        for path, node in nodes:
            if isinstance(node, (QArray, Packed)) and id(node) not in parts:
                around = maps.get(id(node)), turns.get(id(node)), terms.get(id(node), ())
                found.append(_choice(path, node, *around, tokens, platform, dtype))
    return tuple(found)


def explain(tree: Any, tokens: int = 1, platform: str | None = None, dtype: Any = jnp.float32) -> str:
    """The choices as a table: path, shape, format, implementation, and the reason each other one was refused.

    For so many tokens of `dtype` on a platform, None for this one. Tells which leaves are dequantized whole. What a
    traced function dequantizes beyond that (a use without a rule) is logged by `quantized(fn, log=...)`, which knows
    the uses.
    """
    rows = choices(tree, tokens, platform, dtype)
    if not rows:
        return "no quantized leaf"
    where = jax.default_backend() if platform is None else platform
    lines = [f"matmul of {tokens} token{'s' * (tokens != 1)} on {where}"]
    for row in rows:
        why = "".join(f"; {name}: {reason}" for name, reason in row.refused)
        whole = " (dequantized whole)" if row.dequantizes else ""
        lines.append(f"  {row.path or '.'}  {row.shape}  {row.format}  ->  {row.implementation}{whole}{why}")
    return "\n".join(lines)


def _choice(
    path: str,
    leaf: QArray | Packed,
    T: Any,
    turn: Any,
    terms: tuple[Any, ...],
    tokens: int,
    platform: str,
    dtype: Any,
) -> Choice:
    """What matmul does for a leaf.

    T is the map of its inputs, or None; turn another in front of that, or None; terms what it is summed with, or ().
    """
    meta = leaf.meta if isinstance(leaf, QArray) else leaf.grid.meta
    candidates = dispatch.IMPLEMENTATIONS if isinstance(leaf, QArray) else LAYOUTS[leaf.layout].implementations
    whys = rounded_inputs.refusals(T, leaf, platform, dtype)
    if turn is not None:
        whys = rounded_inputs.refusals(T, leaf, platform, dtype, turn) | whys
    joint = rounded_inputs.first(whys)
    summed = epilogues.refusals(terms, tokens, platform, dtype)
    if joint is None and epilogues.prefer(terms):
        joint = next((name for name, why in summed.items() if why is None), None)
    name = choose(candidates, leaf, tokens, platform, None, dtype).name if joint is None else joint
    whys |= summed | {c.name: c.refuse(leaf, tokens, platform, dtype) for c in candidates}
    refused = tuple((name, why) for name, why in whys.items() if why is not None)
    blocks = "x".join("all" if b < 0 else str(b) for b in meta.block)
    layout = f", {leaf.layout}" if isinstance(leaf, Packed) else ""
    return Choice(path, leaf.shape, f"{meta.element.name} {blocks}{layout}", name, refused, name == "dequantize")
