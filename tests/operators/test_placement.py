"""Shardings of quantized leaves on eight devices, Auto and Explicit meshes."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from qjax import dispatch
from qjax.operators import (
    Columns,
    Diag,
    Factored,
    Hadamard,
    Latent,
    Post,
    Pre,
    Rows,
    Scaled,
    Shift,
    Sparse,
    Stacked,
    Sum,
    View,
    prepare,
    shardings,
    straight_through,
)
from qjax.qarray import QArray
from qjax.quantization import dequantize, quantize
from tests.draw import normal

K, N = 256, 64
W = normal(0, K, N)
kinds = pytest.mark.parametrize("kind", [AxisType.Auto, AxisType.Explicit], ids=str)


def mesh(kind=AxisType.Auto):
    return jax.make_mesh((2, 4), ("data", "model"), axis_types=(kind, kind))


def placed(tree, spec, kind=AxisType.Auto):
    return shardings(tree, NamedSharding(mesh(kind), spec))


def specs(tree):
    return [tuple(s.spec) for s in jax.tree.leaves(tree)]


CUT, WHOLE = ("model", None), (None, None)
FORMATS = {  # codes, then the leaves of the scales, for inputs over "model"
    "int4_g64": [CUT, CUT],
    "int3_g64_affine": [CUT, CUT, CUT],
    "nvfp4": [CUT, CUT, WHOLE],
    "int8": [CUT, WHOLE],  # a scale a column
    "nf4_g64": [CUT, WHOLE, WHOLE, WHOLE],  # the second level is one block for all scales
}


@pytest.mark.parametrize("fmt", FORMATS)
def test_children_lie_where_their_blocks_lie(fmt):
    q = quantize(W, fmt)
    assert specs(placed(q, P("model", None))) == FORMATS[fmt]
    outputs = specs(placed(q, P(None, ("data", "model"))))
    assert outputs[0] == (None, ("data", "model"))
    for kind in (AxisType.Auto, AxisType.Explicit):
        there = jax.device_put(q, placed(q, P("model", "data"), kind))
        assert there.codes.addressable_shards[0].data.shape == (K // 4, N // 2)
        np.testing.assert_array_equal(jax.jit(dequantize)(there), dequantize(q))


def test_batch_axes_and_shared_children():
    q = quantize(W.reshape(4, 64, N), "nvfp4", batch_axes=1)
    codes, inner, outer = specs(placed(q, P("model", None, "data")))
    assert codes == inner == ("model", None, "data") and outer == ("model", None, None)


def operator():
    inputs = Pre(Diag(1 + 0.1 * normal(1, K)), Pre(Hadamard(None, 64), quantize(W, "int8")))
    return Sum((Post(inputs, Shift(normal(2, N))), Factored(normal(3, K, 2), quantize(normal(4, 2, N), "int8"))))


@kinds
def test_a_placed_operator_multiplies_as_before(kind):
    op, x = operator(), normal(5, 8, K)
    places = placed(op, P(None, "model"), kind)
    assert places.ops[0].T.offset.spec == P("model") and places.ops[0].op.T.scale.spec == P(None)
    assert places.ops[1].b.codes.spec == P(None, "model") and places.ops[1].a.spec == P(None, None)
    rows = jax.device_put(x, NamedSharding(mesh(kind), P("data", None)))
    y = jax.jit(dispatch.matmul)(rows, jax.device_put(op, places))
    np.testing.assert_allclose(y, dispatch.matmul(x, op), rtol=1e-4, atol=1e-3)


def test_every_node_has_a_rule():
    q = quantize(W, "int4_g64")
    whole = {
        "float": W,
        "rows": Rows((quantize(W[:, :8], "int8"), W[:, 8:])),
        "columns": Columns((quantize(W[:64], "int8"), W[64:])),
        "stacked": Stacked((q, quantize(W, "int8"))),
        "latent": straight_through(W, "int4_g64"),
        "sparse": Sparse.largest(W, 7),
        "scaled": Scaled(q, normal(6, K, 2), normal(7, 2, N)),
        "stored": View.store(q, (N, 4, 64), (1, 2), (0,)),
    }
    like = dict.fromkeys(whole, P("model", None)) | {"columns": P(None, "model"), "stacked": P(None, "model", None)}
    like["stored"] = P(None, "model", None)
    got = shardings(whole, {name: NamedSharding(mesh(), spec) for name, spec in like.items()})
    assert jax.tree.structure(got) == jax.tree.structure(whole)
    assert got["stored"].op.codes.spec == P("model", None)
    assert got["stacked"].ops[0].codes.spec == got["rows"].ops[1].spec == got["latent"].w.spec == P("model", None)
    assert got["columns"].ops[1].spec == P(None, "model") and got["sparse"].values.spec == P(None)
    assert got["scaled"].a.spec == P("model", None) and got["scaled"].b.spec == P(None, None)
    assert isinstance(got["latent"], Latent) and isinstance(got["stacked"].ops[1], QArray)
    jax.tree.map(np.testing.assert_array_equal, jax.device_put(whole, got), whole)


BAD = [
    (lambda: {"w": quantize(W, "int4_g128")}, P("model", None), "w: axis 0 of 256 over 4 devices.*cuts blocks of 128"),
    (lambda: {"w": quantize(W[:, :6], "int8")}, P(None, "model"), "w: axis 1 of 6 cannot be cut evenly over 4"),
    (lambda: {"w": Rows((W, W))}, P(None, "model"), "w: Rows cuts its outputs"),
    (lambda: {"w": Columns((W, W))}, P("model", None), "w: Columns permutes"),
    (lambda: {"w": Stacked((W, quantize(W, "int8")))}, P("data", None, None), "w: its 2 layers differ"),
    (
        lambda: {"w": View.store(quantize(W, "int8"), (N, 4, 64), (1, 2), (0,))},
        P(None, None, "model"),
        "w: as a matrix",
    ),
]


@pytest.mark.parametrize(("make", "spec", "message"), BAD)
def test_what_cannot_be_cut_is_refused(make, spec, message):
    with pytest.raises(ValueError, match=message):
        placed(make(), spec)


def test_packed_leaves_are_placed_before_they_are_packed():
    with pytest.raises(TypeError, match=r"w: Packed.*shard first"):
        placed(prepare({"w": quantize(W, "int4_g64")}), P())
