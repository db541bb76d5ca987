"""Jitted functions inside an interpreted one stay jitted: one compiled block serves every layer of its structure."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from qjax.trace import versions
from qjax.trace.interpreter import evaluate
from qjax.trace.leaf import Leaf


@dataclass
class _Block:
    """One jitted jaxpr on leaves: `names` of the call being traced, `found` the dequantizations of each trace."""

    run: Any = None
    names: dict[str, str] = field(default_factory=dict)
    found: dict[Any, list[tuple[str, str, tuple[int, ...]]]] = field(default_factory=dict)
    key: Any = None


def call(eqn: Any, inputs: Sequence[Any], fallbacks: Any) -> list[Any]:
    """The outputs of a jit equation some of whose inputs are operator leaves.

    Leaves are known inside by position, so that layers under different names share the program.
    """
    jaxpr = versions.called(eqn)
    names: dict[str, str] = {}
    for x in inputs:
        if isinstance(x, Leaf):
            names.setdefault(x.source.path, f"#{len(names)}")
    slots = {slot: fallbacks.names.get(path, path) for path, slot in names.items()}
    block = _block(jaxpr, fallbacks.strict, eqn.params.get("name", "block"))
    inside = [_renamed(x, names) for x in inputs]
    leaves, tree = jax.tree.flatten(inside)
    block.key = (tree, tuple((jax.numpy.shape(v), str(jax.dtypes.result_type(v))) for v in leaves))
    block.names = slots
    outs = block.run(inside)
    for slot, primitive, shape in block.found.get(block.key, ()):
        fallbacks.add(slots[slot], primitive, shape, (id(eqn), slot))
    back = {slot: path for path, slot in names.items()}
    return [_renamed(o, back) for o in outs]


def _renamed(x: Any, names: dict[str, str]) -> Any:
    if not isinstance(x, Leaf):
        return x
    return x.to(source=dataclasses.replace(x.source, path=names[x.source.path]))


@functools.lru_cache(maxsize=256)
def _block(jaxpr: Any, strict: bool, name: str) -> _Block:
    from qjax.trace.evaluation import Evaluation, Fallbacks

    block = _Block()

    def run(inputs: Sequence[Any]) -> list[Any]:
        log: list[tuple[str, str, tuple[int, ...]]] = []
        inner = Fallbacks(strict, log, block.names if strict else {})
        outs = evaluate(jaxpr, inputs, Evaluation(inner))
        block.found[block.key] = log
        return outs

    run.__name__ = name
    block.run = jax.jit(run)
    return block
