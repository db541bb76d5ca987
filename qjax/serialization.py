"""Trees on disk: any pytree of arrays, QArrays and operators in one safetensors file, restored without a template.

The tensors are raw bytes (uint8; sub-byte codes packed, low bits first); a JSON record in the file's metadata holds the
structure, the dtypes and shapes, a schema version and a SHA-256 of structure and bytes. Files are written beside their
target and renamed, so a killed write leaves the old file or none. Nothing is pickled: a record can only name the node
types listed here.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from qjax import formats, operators, qarray, ranges
from qjax.formats.packing import pack, unpack
from qjax.qarray import QArray

SCHEMA = 1
_SUB_BYTE = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2, "float4_e2m1fn": 4}


class RecordError(ValueError):
    """A file that is not a qjax tree, is damaged, or was written by a newer schema."""


def save(path: str | os.PathLike[str], tree: Any) -> str:
    """Write a tree (dicts, lists, tuples, arrays, numbers, strings, QArrays, operators) to one file, atomically.

    Returns the SHA-256 of its content.

    Raises:
        TypeError: a node that has no record; names its place in the tree.
    """
    tensors: dict[str, np.ndarray] = {}
    record = _encode(tree, tensors, "")
    digest = _digest(record, tensors)
    head = json.dumps({"schema": SCHEMA, "tree": record, "sha256": digest})
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
    os.close(handle)
    try:
        save_file(tensors, scratch, metadata={"qjax": head})
        os.replace(scratch, target)
    except BaseException:
        os.unlink(scratch)
        raise
    return digest


def load(path: str | os.PathLike[str]) -> Any:
    """The tree that `save` wrote; array leaves are jax arrays.

    Raises:
        RecordError: not such a file, a newer schema, an unknown node type, or content that does not match its hash.
        FileNotFoundError: no file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            head = json.loads((file.metadata() or {})["qjax"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        schema, record, digest = head["schema"], head["tree"], head["sha256"]
    except (SafetensorError, KeyError, TypeError, json.JSONDecodeError) as e:
        raise RecordError(f"{path}: not a file written by qjax.io.save ({type(e).__name__}: {e})") from e
    if schema != SCHEMA:
        raise RecordError(f"{path}: schema {schema}, this qjax reads {SCHEMA}; update qjax")
    if _digest(record, tensors) != digest:
        raise RecordError(f"{path}: its content does not match its SHA-256; the file is damaged")
    try:
        return _decode(record, tensors)
    except (KeyError, TypeError, ValueError, IndexError) as e:
        raise RecordError(f"{path}: its record cannot be read ({type(e).__name__}: {e})") from e


def _digest(record: Any, tensors: Mapping[str, np.ndarray]) -> str:
    h = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name in sorted(tensors, key=int):
        h.update(tensors[name].tobytes())
    return h.hexdigest()


def _types() -> dict[str, type]:
    """Every node and static type a record may name: the dataclasses of formats, arrays, ranges and operators."""
    rooms: tuple[ModuleType, ...] = (formats, qarray, operators, ranges)
    return {
        cls.__name__: cls
        for room in rooms
        for cls in vars(room).values()
        if isinstance(cls, type) and dataclasses.is_dataclass(cls)
    }


def _encode(value: Any, tensors: dict[str, np.ndarray], where: str) -> Any:
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return {"key": str(jax.random.key_impl(value)), "data": _encode(jax.random.key_data(value), tensors, where)}
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        array = np.asarray(value)
        name = str(len(tensors))
        tensors[name] = _to_bytes(array)
        return {"array": name, "dtype": array.dtype.name, "shape": list(array.shape)}
    if isinstance(value, _Codes):
        return _encode_codes(value, tensors)
    if isinstance(value, np.dtype):
        return {"dtype_name": value.name}
    if isinstance(value, dict):
        if not all(isinstance(k, str) for k in value):
            raise TypeError(f"{where or '/'}: a dict with keys that are not strings has no record")
        return {"dict": {k: _encode(v, tensors, f"{where}/{k}") for k, v in value.items()}}
    if dataclasses.is_dataclass(value) and type(value).__name__ in _types():
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        if isinstance(value, QArray):
            fields["codes"] = _Codes(value.codes, value.meta.element.bits)
        return {
            "type": type(value).__name__,
            "fields": {k: _encode(v, tensors, f"{where}/{k}") for k, v in fields.items()},
        }
    if isinstance(value, list | tuple) and type(value) in (list, tuple):  # a named tuple has no record
        return {type(value).__name__: [_encode(v, tensors, f"{where}/{i}") for i, v in enumerate(value)]}
    raise TypeError(
        f"{where or '/'}: {type(value).__name__} has no record; save arrays, containers, QArrays or operators"
    )


class _Codes(NamedTuple):
    """Codes that whole bytes hold in memory and `bits` each on disk."""

    array: jax.Array
    bits: int


def _encode_codes(codes: _Codes, tensors: dict[str, np.ndarray]) -> Any:
    array, bits = codes
    whole = not jnp.issubdtype(array.dtype, jnp.integer) or array.dtype.name in _SUB_BYTE
    if whole or bits >= 8 * array.dtype.itemsize:
        return _encode(array, tensors, "")
    name = str(len(tensors))
    tensors[name] = np.asarray(pack(array.reshape(-1), bits))
    return {"codes": name, "bits": bits, "dtype": array.dtype.name, "shape": list(array.shape)}


def _decode(record: Any, tensors: Mapping[str, np.ndarray]) -> Any:
    if not isinstance(record, dict):
        return record
    if "array" in record:
        return jnp.asarray(_from_bytes(tensors[record["array"]], record["dtype"], tuple(record["shape"])))
    if "codes" in record:
        size, signed = int(np.prod(record["shape"], dtype=np.int64)), record["dtype"].startswith("int")
        codes = unpack(jnp.asarray(tensors[record["codes"]]), record["bits"], size, signed)
        return codes.astype(record["dtype"]).reshape(record["shape"])
    if "dtype_name" in record:
        return _dtype(record["dtype_name"])
    if "key" in record:
        return jax.random.wrap_key_data(_decode(record["data"], tensors), impl=record["key"])
    if "dict" in record:
        return {k: _decode(v, tensors) for k, v in record["dict"].items()}
    if "list" in record:
        return [_decode(v, tensors) for v in record["list"]]
    if "tuple" in record:
        return tuple(_decode(v, tensors) for v in record["tuple"])
    return _types()[record["type"]](**{k: _decode(v, tensors) for k, v in record["fields"].items()})


def _dtype(name: str) -> np.dtype:
    return np.dtype(getattr(ml_dtypes, name, name))


def _to_bytes(array: np.ndarray) -> np.ndarray:
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    bits = _SUB_BYTE.get(array.dtype.name)
    if bits is None:
        return flat
    per = 8 // bits  # numpy spends a byte on each of these
    flat = np.pad(flat & (2**bits - 1), (0, -len(flat) % per)).reshape(-1, per)
    return np.bitwise_or.reduce(flat << (bits * np.arange(per, dtype=np.uint8)), axis=1).astype(np.uint8)


def _from_bytes(data: np.ndarray, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    kind = _dtype(dtype)
    bits, size = _SUB_BYTE.get(dtype), int(np.prod(shape, dtype=np.int64))
    if bits is None:
        return data.view(kind).reshape(shape)
    codes = (data[:, None] >> (bits * np.arange(8 // bits, dtype=np.uint8))).reshape(-1)[:size] & (2**bits - 1)
    if dtype.startswith("int"):  # two's complement, back to a signed byte
        codes = ((codes << (8 - bits)).view(np.int8) >> (8 - bits)).view(np.uint8)
    return codes.view(kind).reshape(shape)
