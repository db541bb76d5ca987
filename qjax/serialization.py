"""Trees on disk: any pytree of arrays, QArrays and operators in one safetensors file, restored without a template.

The tensors are raw bytes (uint8; sub-byte codes packed, low bits first); a JSON record in the file's metadata holds the
structure, the dtypes and shapes, a schema version and a SHA-256 of structure and bytes. Files are written beside their
target and renamed, so a killed write leaves the old file or none.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from qjax.formats.packing import pack, unpack
from qjax.record import SCHEMA, SUB_BYTE, Array, RecordError, decode, dtype, encode


def save(path: str | os.PathLike[str], tree: Any) -> str:
    """Write a tree (dicts, lists, tuples, arrays, numbers, strings, QArrays, operators) to one file, atomically.

    Returns the SHA-256 of its content.

    Raises:
        TypeError: a node that has no record; names its place in the tree.
    """
    tensors: dict[str, np.ndarray] = {}

    def put(array: Array, bits: int | None) -> str:
        name = str(len(tensors))
        packed = None if bits is None else pack(jnp.asarray(array).reshape(-1), bits)
        tensors[name] = _to_bytes(np.asarray(array)) if packed is None else np.asarray(packed)
        return name

    record = encode(tree, put)
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
        return decode(record, lambda entry: _array(entry, tensors))
    except (KeyError, TypeError, ValueError, IndexError) as e:
        raise RecordError(f"{path}: its record cannot be read ({type(e).__name__}: {e})") from e


def _digest(record: Any, tensors: Mapping[str, np.ndarray]) -> str:
    h = hashlib.sha256(json.dumps(record, sort_keys=True).encode())
    for name in sorted(tensors, key=int):
        h.update(tensors[name].tobytes())
    return h.hexdigest()


def _array(entry: Mapping[str, Any], tensors: Mapping[str, np.ndarray]) -> Any:
    if "array" in entry:
        return jnp.asarray(_from_bytes(tensors[entry["array"]], entry["dtype"], tuple(entry["shape"])))
    size, signed = int(np.prod(entry["shape"], dtype=np.int64)), entry["dtype"].startswith("int")
    codes = unpack(jnp.asarray(tensors[entry["codes"]]), entry["bits"], size, signed)
    return codes.astype(entry["dtype"]).reshape(entry["shape"])


def _to_bytes(array: np.ndarray) -> np.ndarray:
    flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    bits = SUB_BYTE.get(array.dtype.name)
    if bits is None:
        return flat
    per = 8 // bits  # numpy spends a byte on each of these
    flat = np.pad(flat & (2**bits - 1), (0, -len(flat) % per)).reshape(-1, per)
    return np.bitwise_or.reduce(flat << (bits * np.arange(per, dtype=np.uint8)), axis=1).astype(np.uint8)


def _from_bytes(data: np.ndarray, name: str, shape: tuple[int, ...]) -> np.ndarray:
    kind = dtype(name)
    bits, size = SUB_BYTE.get(name), int(np.prod(shape, dtype=np.int64))
    if bits is None:
        return data.view(kind).reshape(shape)
    codes = (data[:, None] >> (bits * np.arange(8 // bits, dtype=np.uint8))).reshape(-1)[:size] & (2**bits - 1)
    if name.startswith("int"):  # two's complement, back to a signed byte
        codes = ((codes << (8 - bits)).view(np.int8) >> (8 - bits)).view(np.uint8)
    return codes.view(kind).reshape(shape)
