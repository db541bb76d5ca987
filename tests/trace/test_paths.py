from __future__ import annotations

import jax.numpy as jnp
import pytest

from qjax.quantization import quantize
from qjax.trace.paths import leaves_with_paths, replace_leaves, select

TREE = {"layers": [{"q": jnp.ones((4, 4)), "bias": jnp.ones(4)}, {"q": jnp.ones((4, 4))}], "head": jnp.ones((4, 8))}


def test_paths_are_slash_separated_and_in_tree_order():
    assert list(leaves_with_paths(TREE)) == ["head", "layers/0/bias", "layers/0/q", "layers/1/q"]


def test_quantized_arrays_are_leaves():
    tree = replace_leaves(TREE, {"head": quantize(TREE["head"], "int8")})
    assert list(leaves_with_paths(tree)) == list(leaves_with_paths(TREE))
    assert tree["layers"][0]["q"] is TREE["layers"][0]["q"]
    back = replace_leaves(tree, {"head": TREE["head"]})
    assert back["head"] is TREE["head"]


def test_a_path_that_names_nothing_raises():
    with pytest.raises(ValueError, match="'layers/7/q'"):
        replace_leaves(TREE, {"layers/7/q": 0})


def test_two_leaves_of_one_name_raise():
    with pytest.raises(ValueError, match="'a/b'"):
        leaves_with_paths({"a": {"b": 1}, "a/b": 2})


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        ("layers/*", ["layers/0/bias", "layers/0/q", "layers/1/q"]),
        (["head", "layers/1/*"], ["head", "layers/1/q"]),
        (lambda p: p.endswith("q"), ["layers/0/q", "layers/1/q"]),
    ],
)
def test_select(where, chosen):
    assert list(select(list(leaves_with_paths(TREE)), where)) == chosen


@pytest.mark.parametrize("where", ["nothing*", ["head", "nothing"], lambda p: False])
def test_a_pattern_that_matches_nothing_raises(where):
    with pytest.raises(ValueError, match="matched no leaf"):
        select(list(leaves_with_paths(TREE)), where)
