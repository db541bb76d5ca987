"""A container: the layouts a leaf may have, how one is chosen, and the settings in config.json that tell which."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from qjax.io.layout import Layout, Leaf, Scheme, as_leaf, fits

EXPERT = re.compile(r"\.experts\.\d+\.")


class Stored(NamedTuple):
    """A leaf and the layout it is written in."""

    leaf: Leaf
    layout: Layout


class Container(NamedTuple):
    """What one family of checkpoints is, beside the tensors.

    name     : its `quant_method`.
    layouts  : in the order of preference.
    choose   : (path, leaf, layouts that hold it) -> the layout to write; raises ValueError for what a leaf adds.
    settings : (modules and what they store, linear modules that stay float) -> `quantization_config`.
    schemes  : `quantization_config` -> (linear module -> its scheme, or None for a float); raises ValueError.
    """

    name: str
    layouts: tuple[Layout, ...]
    choose: Callable[[str, Leaf, list[Layout]], Layout]
    settings: Callable[[Mapping[str, Stored], list[str]], dict[str, Any]]
    schemes: Callable[[Mapping[str, Any]], Callable[[str], Scheme | None]]

    def store(self, path: str, node: Any, layout: str | None) -> Stored:
        """A parameter as a leaf with its layout, or with the one named.

        Raises:
            ValueError: no layout holds it; names the path, what it is, and what could be held.
        """
        leaf = as_leaf(path, node)
        fitting = [option for option in self.layouts if fits(leaf, option) and layout in (None, option.name)]
        if not fitting:
            meta = leaf.q.meta
            scale = leaf.q.scales[0]
            what = f"{meta.element.name} in blocks of {meta.block} [inputs, outputs], offset {meta.offset}, scales "
            what += f"{scale.dtype.name if not hasattr(scale, 'codes') else 'quantized'}"
            what += ", inputs reordered" if leaf.order is not None else ""
            raise ValueError(
                f"{path}: {what} has no layout in {self.name}{f' ({layout})' if layout else ''}; it holds "
                f"{'; '.join(_description(option) for option in self.layouts if layout in (None, option.name))}"
            )
        return Stored(leaf, self.choose(path, leaf, fitting))


def unrounded(path: str, leaf: Leaf, fitting: list[Layout]) -> Layout:
    """`choose` of a container of weights alone."""
    if leaf.rounding is not None:
        raise ValueError(
            f"{path}: its input is rounded to {leaf.rounding.format.name}, of which {fitting[0].name} says nothing; "
            'use to="compressed-tensors"'
        )
    return fitting[0]


def same_everywhere(container: str, stored: Mapping[str, Stored]) -> tuple[int, int]:
    """Bits and group size (-1 for a channel), where a container has one of each for the whole model.

    Raises:
        ValueError: modules differ; names two.
    """
    found: dict[tuple[int, int], str] = {}
    for module, (leaf, _) in stored.items():
        found.setdefault((leaf.q.meta.element.bits, leaf.q.meta.block[0]), module)
    if len(found) > 1:
        (a, first), (b, second) = list(found.items())[:2]
        raise ValueError(
            f"{container} has one width and group for the whole model: {first} has {a}, {second} has {b} (bits, group);"
            ' use one, or to="compressed-tensors"'
        )
    return next(iter(found))


def patterns(modules: Iterable[str]) -> list[str]:
    r"""Regular expressions of the names of modules; the experts of a layer, which are stored alike, have one together.

    >>> patterns(["lm_head", "mlp.experts.0.up", "mlp.experts.1.up"])
    ['lm_head', 'mlp\\.experts\\.\\d+\\.up']
    """
    found = (r"\.experts\.\d+\.".join(map(re.escape, EXPERT.split(module))) for module in modules)
    return list(dict.fromkeys(found))


def _description(layout: Layout) -> str:
    bits = f" of {min(layout.bits)}-{max(layout.bits)} bits" if layout.bits else ""
    blocks = "/".join(layout.strategies) + (f" of {layout.group}" if layout.group else "")
    return f"{layout.name}: {layout.element}{bits}, {blocks}, {'/'.join(layout.scale)} scales"
