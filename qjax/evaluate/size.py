"""Bits, always as two figures: of the weights a method was aimed at, and of the whole model.

Counted: codes, scales, offsets, tables, low-rank factors, sparse values and indices, padding, learned matrices.
Rotations that a key generates count nothing. Plain arrays count at the width they are stored in.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

from qjax import dispatch
from qjax.serialization import save
from qjax.trace.paths import leaves_with_paths


def bpw(params: Any, targets: Iterable[str]) -> float:
    """Bits per weight over the leaves at the paths `targets`; raises KeyError for a path the tree lacks."""
    leaves = leaves_with_paths(params)
    return _bits_per_element([leaves[path] for path in dict.fromkeys(targets)])


def bpw_model(params: Any) -> float:
    """Bits per parameter over all leaves; one leaf that stands in two places (tied) is counted once."""
    return _bits_per_element(list({id(leaf): leaf for leaf in leaves_with_paths(params).values()}.values()))


def _bits_per_element(leaves: list[Any]) -> float:
    if not leaves:
        raise ValueError("bits of no leaf: the list of targets is empty")
    stored = sum(dispatch.bits(leaf) for leaf in leaves) - _again(leaves)
    return float(stored / sum(math.prod(dispatch.shape(leaf)) for leaf in leaves))


def _again(leaves: list[Any]) -> float:
    """Bits of the arrays that several leaves hold in common, all but once: the shared factor of low-rank terms."""
    first: dict[int, int] = {}
    shared = 0.0
    for number, leaf in enumerate(leaves):
        for array in jax.tree.leaves(leaf):
            if first.setdefault(id(array), number) != number:
                shared += dispatch.bits(array)
    return shared


def disk_bytes(params: Any) -> int:
    """Bytes of the file `qjax.io.save` writes for this tree: it is written to a temporary place and measured."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params.safetensors"
        save(path, params)
        return path.stat().st_size
