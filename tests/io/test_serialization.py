"""Trees saved and restored: every code type bit for bit, damage found, nothing half-written."""

from __future__ import annotations

import dataclasses
import json
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from qjax import io
from qjax.operators import Diag, Factored, Pre, Stacked, Sum, View
from qjax.quantization import quantize
from tests import draw

FORMATS = (
    "int2_g8",
    "int4_g8",
    "int3_g8_affine",
    "int8",
    "fp8_e4m3",
    "mxfp4",
    "mxfp6_e3m2",
    "nvfp4",
    "nf4_g64",
    "bitmod4",
    "posit5es0_g32_max1",
    "log3_g32",
    "uq2.4_cast",
)


def same(a, b) -> bool:
    if jax.tree.structure(a) != jax.tree.structure(b):
        return False
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return all(x.dtype == y.dtype and np.asarray(x).tobytes() == np.asarray(y).tobytes() for x, y in pairs)


@pytest.mark.parametrize("fmt", FORMATS)
def test_formats_come_back_bit_for_bit_without_a_template(tmp_path, fmt):
    q = quantize(draw.normal(0, 64, 24), fmt)
    io.save(tmp_path / "tree", {"w": q})
    back = io.load(tmp_path / "tree")["w"]
    assert same(q, back)
    assert back.meta == q.meta


@pytest.mark.parametrize(
    "dtype", ["int4", "uint4", "int2", "uint2", "float4_e2m1fn", "bfloat16", "float8_e4m3fn", "int8"]
)
def test_every_code_of_narrow_types(tmp_path, dtype):
    codes = jnp.arange(-9, 9, dtype=jnp.int32).astype(jnp.dtype(dtype))
    io.save(tmp_path / "tree", [codes, codes[:1], codes[:0]])
    back = io.load(tmp_path / "tree")
    for got, want in zip(back, [codes, codes[:1], codes[:0]], strict=True):
        assert got.dtype == want.dtype
        assert np.asarray(got).astype(np.float32).tolist() == np.asarray(want).astype(np.float32).tolist()


def test_sub_byte_codes_take_their_bits(tmp_path):
    codes = jnp.zeros((1 << 16,), "int4")
    io.save(tmp_path / "tree", codes)
    assert os.path.getsize(tmp_path / "tree") < (1 << 15) + 1000


def test_operators_containers_keys_and_plain_values(tmp_path):
    w = draw.normal(1, 8, 6)
    op = Pre(Diag(jnp.ones(8)), Sum((quantize(w, "int4_g8"), Factored(w[:, :2], w[:2]))))
    tree = {
        "op": op,
        "stored": View.store(op, (6, 8), (1,), (0,)),
        "mixed": Stacked((quantize(w, "int8"), w)),
        "list": [1, 2.5, None, "text", True, (jnp.zeros(()),)],
        "key": jax.random.key(3),
    }
    io.save(tmp_path / "tree", tree)
    back = io.load(tmp_path / "tree")
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    assert same(back["op"], op)
    assert same(back["stored"], tree["stored"])
    assert back["list"][:5] == [1, 2.5, None, "text", True]
    assert jax.random.key_data(back["key"]).tolist() == jax.random.key_data(tree["key"]).tolist()


def test_bad_trees_and_files_are_refused(tmp_path):
    with pytest.raises(TypeError, match="/a/1: function has no record"):
        io.save(tmp_path / "tree", {"a": [1, lambda: 0]})
    with pytest.raises(TypeError, match="not strings"):
        io.save(tmp_path / "tree", {"a": {1: 2}})
    with pytest.raises(FileNotFoundError):
        io.load(tmp_path / "tree")
    (tmp_path / "noise").write_bytes(os.urandom(200))
    with pytest.raises(io.RecordError, match="not a file written"):
        io.load(tmp_path / "noise")
    save_file({"0": np.zeros(3, np.uint8)}, tmp_path / "foreign")
    with pytest.raises(io.RecordError, match="not a file written"):
        io.load(tmp_path / "foreign")
    assert not [f for f in os.listdir(tmp_path) if f.startswith(".")]  # no scratch left


def test_damage_and_newer_schema_are_found(tmp_path):
    io.save(tmp_path / "tree", {"w": jnp.arange(100, dtype=jnp.int32)})
    data = bytearray((tmp_path / "tree").read_bytes())
    data[-1] ^= 1
    (tmp_path / "flipped").write_bytes(data)
    with pytest.raises(io.RecordError, match="SHA-256"):
        io.load(tmp_path / "flipped")
    with safe_open(tmp_path / "tree", framework="numpy") as file:
        head = json.loads(file.metadata()["qjax"])
        tensors = {k: file.get_tensor(k) for k in file.keys()}  # noqa: SIM118
    head["schema"] += 1
    save_file(tensors, tmp_path / "newer", metadata={"qjax": json.dumps(head)})
    with pytest.raises(io.RecordError, match="update qjax"):
        io.load(tmp_path / "newer")


def test_records_name_only_our_types(tmp_path):
    @dataclasses.dataclass
    class Stranger:
        x: int

    with pytest.raises(TypeError, match="Stranger"):
        io.save(tmp_path / "tree", {"a": Stranger(1)})
