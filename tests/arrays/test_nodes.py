"""Dataclasses as pytree nodes: the class is part of the structure."""

from __future__ import annotations

import itertools
import pickle
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from qjax.nodes import node
from qjax.operators import Composed, Diag, Permute, Rows, Shift, Stacked, Sum
from qjax.rounding import ceil, floor, half_away, nearest


@node
@dataclass(frozen=True)
class Pair:
    kind: str = field(metadata={"static": True})
    first: Any
    second: Any = None


ALIKE = {
    "operators": [cls((jnp.ones((4, 4)), jnp.ones((4, 4)))) for cls in (Rows, Stacked, Sum, Composed)],
    "maps": [cls(jnp.ones(4)) for cls in (Diag, Shift)] + [Permute(jnp.ones(4))],
    "roundings": [nearest, half_away, floor, ceil],
}


@pytest.mark.parametrize("alike", ALIKE.values(), ids=ALIKE)
def test_classes_with_equal_fields_have_different_structures(alike):
    for a, b in itertools.combinations(map(jax.tree.structure, alike), 2):
        assert a != b


def test_children_are_fields_and_the_rest_is_structure():
    pair = Pair("k", jnp.arange(3.0), jnp.ones(2))
    paths = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(pair)]
    assert paths == [".first", ".second"]
    twice = jax.jit(lambda p: jax.tree.map(lambda x: 2 * x, p))(pair)
    assert type(twice) is Pair and twice.kind == "k"
    np.testing.assert_array_equal(twice.first, [0, 2, 4])
    assert jax.tree.structure(pair) == jax.tree.structure(twice)
    assert jax.tree.structure(pair) != jax.tree.structure(Pair("other", pair.first, pair.second))
    assert hash(jax.tree.structure(pair)) == hash(jax.tree.structure(twice))
    with pytest.raises(ValueError, match=r"[Mm]ismatch|structure"):
        jax.tree.map(jnp.add, pair, Pair("other", pair.first, pair.second))


def test_arrays_on_the_way_may_be_anything():
    q = jax.tree.structure(Pair("k", 1, 2)).unflatten([None, "x"])
    assert q.first is None and q.second == "x"
    stacked = jax.vmap(lambda p: p)(Pair("k", jnp.ones((3, 2)), jnp.ones((3, 1))))
    assert stacked.first.shape == (3, 2)
    assert pickle.loads(pickle.dumps(Diag(np.ones(2)))).scale.shape == (2,)
