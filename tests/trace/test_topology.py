"""The wiring record checks itself against the leaves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from qjax.trace.topology import Norm, Port, Product, Scores, Topology, Values

SHAPES = {
    "embed": (31, 8),
    "q": (8, 8),
    "k": (8, 4),
    "v": (8, 4),
    "o": (8, 8),
    "gain": (8,),
    "gate": (3, 8, 12),
    "up": (3, 8, 12),
    "down": (3, 12, 8),
}
QKV = tuple(Port(n, -2) for n in "qkv")
WIRING = Topology(
    readers=(*QKV, Port("gate", -2), Port("up", -2)),
    writers=(Port("embed", -1), Port("o", -1), Port("down", -1)),
    norms=(Norm("gain", QKV),),
    values=(Values(Port("v", -1), Port("o", -2), heads=4, kv_heads=2, head_dim=2),),
    scores=(Scores(Port("q", -1), Port("k", -1), heads=4, kv_heads=2, head_dim=2),),
    products=(Product(Port("gate", -1), Port("up", -1), Port("down", -2)),),
)


def test_a_right_record_passes_and_lists_its_ports():
    WIRING.check(SHAPES)
    assert len(list(WIRING.ports())) == 5 + 3 + 3 + 2 + 2 + 3 and hash(WIRING) == hash(replace(WIRING))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"readers": (Port("x", -1),)}, "names 'x', which is no leaf"),
        (
            {"readers": (Port("q", -2), Port("down", -2))},
            "readers disagree on the width of the stream: q has 8, down has 12",
        ),
        ({"readers": (Port("q", 0),)}, "axis 0 of 'q' is not a negative axis"),
        ({"norms": (Norm("gain", (Port("down", -2),)),)}, "norm gain has 8 channels, its reader down 12"),
        ({"values": (replace(WIRING.values[0], kv_heads=4),)}, r"v has 4 channels, kv_heads \* head_dim 8"),
        ({"scores": (replace(WIRING.scores[0], rope="pairs"),)}, "rope='pairs' of q"),
        ({"products": (Product(None, Port("up", -1), Port("o", -2)),)}, "up has 12 channels, o 8"),
        ({"writers": (Port("o", -1, bias="o_bias"),)}, "names 'o_bias'"),
    ],
)
def test_a_wrong_record_names_the_leaf(change, message):
    with pytest.raises(ValueError, match=message):
        replace(WIRING, **change).check(SHAPES)
