"""Trees in Orbax checkpoints: sharded over eight devices, a part of them, every type bit for bit, damage found."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import qjax
from qjax import io
from qjax.operators import Diag, Pre
from qjax.quantization import quantize
from tests import draw

NARROW = ("int4", "uint4", "int2", "float4_e2m1fn", "bfloat16", "float8_e4m3fn", "float8_e8m0fnu", "int8", "bool")


def same(a, b) -> bool:
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return jax.tree.structure(a) == jax.tree.structure(b) and all(
        x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs
    )


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """(folder, tree, shardings): formats, an operator and narrow types, the weights cut over eight devices."""
    mesh = jax.make_mesh((8,), ("model",), axis_types=(jax.sharding.AxisType.Auto,))
    w = draw.normal(0, 64, 24)
    layers = {
        "0": {"a": quantize(w, "int3_g8_affine"), "b": Pre(Diag(jnp.ones(64)), quantize(w, "nvfp4"))},
        "1": {"a": quantize(w, "int4_g8"), "b": w},
    }
    cut = jax.sharding.NamedSharding(mesh, jax.P(None, "model"))
    whole = jax.sharding.NamedSharding(mesh, jax.P())
    homes = qjax.shardings(layers, jax.tree.map(lambda _: cut, {"0": {"a": 0, "b": 0}, "1": {"a": 0, "b": 0}}))
    values = jnp.arange(-9, 9, dtype=jnp.int32)
    rest = {
        "narrow": [values.astype(jnp.dtype(name)) for name in NARROW],
        "key": jax.random.key(3),
        "none": jnp.zeros((0, 3)),
        "plain": (1, "text", None, np.float32(2.5)),
    }
    tree = {"layers": jax.device_put(layers, homes), "rest": rest}
    folder = tmp_path_factory.mktemp("checkpoints") / "tree"
    io.save_sharded(folder, tree)
    return folder, tree, {"layers": homes, "rest": whole}


def test_all_of_it_comes_back_without_a_template(written):
    folder, tree, _ = written
    back = io.load_sharded(folder)
    assert same(back["layers"], tree["layers"]) and same(back["rest"]["narrow"], tree["rest"]["narrow"])
    assert jax.random.key_data(back["rest"]["key"]).tolist() == jax.random.key_data(tree["rest"]["key"]).tolist()
    assert back["rest"]["none"].shape == (0, 3) and back["rest"]["plain"][:3] == (1, "text", None)
    with pytest.raises(FileExistsError, match="give a new folder"):
        io.save_sharded(folder, tree)


def test_shards_go_where_they_are_wanted(written):
    folder, tree, homes = written
    layers = io.load_sharded(folder, where="layers/*", shardings={"layers": homes["layers"]})["layers"]
    assert same(layers, tree["layers"])
    codes = layers["1"]["a"].codes
    assert codes.sharding == tree["layers"]["1"]["a"].codes.sharding and codes.addressable_shards[0].data.shape == (
        64,
        3,
    )
    abstract = io.described(folder, "layers/1/*")
    assert list(abstract["layers"]) == ["1"] and isinstance(abstract["layers"]["1"]["b"], jax.ShapeDtypeStruct)
    mesh = homes["rest"].mesh
    rows = jax.sharding.NamedSharding(mesh, jax.P("model", None))
    turned = io.load_sharded(folder, where="layers/1/*", shardings=qjax.shardings(abstract, rows))
    assert turned["layers"]["1"]["a"].codes.sharding.spec == jax.P("model", None)
    assert same(turned["layers"]["1"], tree["layers"]["1"])


def test_what_cannot_be_read_is_refused(written, tmp_path):
    folder, _, _ = written
    with pytest.raises(KeyError, match="no path of this tree matches 'layer/"):
        io.load_sharded(folder, where="layer/*")
    with pytest.raises(FileNotFoundError):
        io.load_sharded(tmp_path / "nothing")
    (tmp_path / "foreign").mkdir()
    with pytest.raises(io.RecordError, match="not a checkpoint"):
        io.load_sharded(tmp_path / "foreign")
    with pytest.raises(TypeError, match="/a: function has no record"):
        io.save_sharded(tmp_path / "bad", {"a": lambda: 0})
    assert not (tmp_path / "bad").exists()
    record = folder / "record" / "metadata"
    before = record.read_text()
    head = json.loads(before)
    try:
        for changed, message in (({"schema": 2}, "update qjax"), ({"tree": {"dict": {}}}, "SHA-256")):
            record.write_text(json.dumps(head | changed))
            with pytest.raises(io.RecordError, match=message):
                io.described(folder)
    finally:
        record.write_text(before)
