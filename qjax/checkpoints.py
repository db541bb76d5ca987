"""Trees in Orbax checkpoints: arrays sharded over a mesh are written and read shard by shard, all of them or a part.

A checkpoint is a folder: Orbax's arrays, and the record that `qjax.record` makes of everything else, so that QArrays
and operators come back without a template. Codes keep the whole bytes they have in memory (Orbax compresses them);
types that its storage does not know travel as bytes or as wider ones that hold every value.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qjax.record import SCHEMA, SUB_BYTE, Array, Get, RecordError, chosen, decode, dtype, encode


def save_sharded(folder: str | os.PathLike[str], tree: Any) -> str:
    """Write a tree (as `qjax.io.save` takes) to a new folder, atomically; each process writes its own shards.

    Returns the SHA-256 of its record.

    Raises:
        TypeError: a node that has no record; names its place in the tree.
        FileExistsError: the folder exists.
    """
    target = Path(folder).absolute()
    if target.exists():
        raise FileExistsError(f"{target} exists; give a new folder, or remove it")
    arrays: dict[str, jax.Array] = {}

    def put(array: Array, bits: int | None) -> str:
        name = str(len(arrays))
        arrays[name] = _stored(jnp.asarray(array))
        return name

    record = encode(tree, put)
    digest = _digest(record)
    whole = {name: array for name, array in arrays.items() if array.size}  # Orbax keeps no array without numbers
    head = {"schema": SCHEMA, "tree": record, "sha256": digest}
    ocp = _orbax()
    with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as writer:
        kept = ocp.args.PyTreeSave(whole or _NONE)
        writer.save(target, ocp.args.Composite(arrays=kept, record=ocp.args.JsonSave(head)))
    return digest


def described(folder: str | os.PathLike[str], where: str = "*") -> Any:
    """The tree of a checkpoint with a `jax.ShapeDtypeStruct` for every array, none of which is read.

    Raises: as `load_sharded`.
    """
    path = Path(folder).absolute()
    return _decoded(path, _record(path, where), _abstract)


def load_sharded(folder: str | os.PathLike[str], *, where: str = "*", shardings: Any = None) -> Any:
    """The tree that `save_sharded` wrote, or the part of it whose paths match a glob ("layers/0/*").

    `shardings` says where arrays go: a `jax.sharding.Sharding` for all, or a tree of them, a prefix of the tree that
    comes back (`qjax.shardings(described(folder), like)` makes one); None is the default device. Only what is wanted,
    and of that only a process's own shards, is read.

    Raises:
        RecordError: no such checkpoint, a newer schema, an unknown node type, a record that does not match its hash.
        FileNotFoundError: no folder.
        KeyError: no path matches `where`.
    """
    path = Path(folder).absolute()
    record = _record(path, where)
    entries: dict[int, Mapping[str, Any]] = {}
    kept: list[jax.ShapeDtypeStruct] = []  # so that no identity is used twice

    def listed(entry: Mapping[str, Any]) -> jax.ShapeDtypeStruct:
        kept.append(_abstract(entry))
        entries[id(kept[-1])] = entry
        return kept[-1]

    tree = _decoded(path, record, listed)
    everywhere = jax.sharding.SingleDeviceSharding(jax.devices()[0]) if shardings is None else shardings
    placed = jax.tree.map(lambda sharding, part: jax.tree.map(lambda _: sharding, part), everywhere, tree)
    homes = {id(a): s for a, s in zip(jax.tree.leaves(tree), jax.tree.leaves(placed), strict=True)}
    wanted = {
        entry[_key(entry)]: _request(entry, homes[i])
        for i, entry in entries.items()
        if 0 not in entry["shape"] and i in homes
    }
    found: Mapping[str, jax.Array] = {}
    if wanted:
        ocp = _orbax()
        arguments = ocp.checkpoint_utils.construct_restore_args(wanted)
        restore = ocp.args.PyTreeRestore(item=wanted, restore_args=arguments, partial_restore=True)
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            found = reader.restore(path, ocp.args.Composite(arrays=restore)).arrays

    def get(entry: Mapping[str, Any]) -> jax.Array:
        kind, name = dtype(entry["dtype"]), entry[_key(entry)]
        return _restored(found[name], kind) if name in found else jnp.zeros(entry["shape"], kind)

    return _decoded(path, record, get)


_NONE = {"none": np.zeros(1, np.uint8)}  # Orbax keeps no empty tree


def _orbax() -> Any:
    """Orbax, whose import takes seconds."""
    import orbax.checkpoint

    return orbax.checkpoint


def _record(path: Path, where: str) -> Any:
    """The record of a checkpoint, or the part of it that a glob names."""
    if not path.is_dir():
        raise FileNotFoundError(f"{path}: no such folder")
    ocp = _orbax()
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler()) as reader:
            head = reader.restore(path, ocp.args.Composite(record=ocp.args.JsonRestore())).record
        schema, record, digest = head["schema"], head["tree"], head["sha256"]
    except (KeyError, TypeError, ValueError, FileNotFoundError) as e:
        raise RecordError(f"{path}: not a checkpoint of qjax.io.save_sharded ({type(e).__name__}: {e})") from e
    if schema != SCHEMA:
        raise RecordError(f"{path}: schema {schema}, this qjax reads {SCHEMA}; update qjax")
    if _digest(record) != digest:
        raise RecordError(f"{path}: its record does not match its SHA-256; the checkpoint is damaged")
    part = chosen(record, where)
    if part == {"dict": {}} != record:
        raise KeyError(f"{path}: no path of this tree matches {where!r}")
    return part


def _decoded(path: Path, record: Any, get: Get) -> Any:
    try:
        return decode(record, get)
    except (KeyError, TypeError, ValueError, IndexError) as e:
        raise RecordError(f"{path}: its record cannot be read ({type(e).__name__}: {e})") from e


def _digest(record: Any) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()


def _key(entry: Mapping[str, Any]) -> str:
    return "array" if "array" in entry else "codes"


def _abstract(entry: Mapping[str, Any]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(tuple(entry["shape"]), dtype(entry["dtype"]))


def _request(entry: Mapping[str, Any], sharding: jax.sharding.Sharding) -> jax.ShapeDtypeStruct:
    """What is asked of Orbax: the carrier of an array, in its place."""
    return jax.ShapeDtypeStruct(tuple(entry["shape"]), _carrier(dtype(entry["dtype"])), sharding=sharding)


def _carrier(kind: np.dtype) -> np.dtype:
    """What a type travels as."""
    if kind.name in SUB_BYTE:
        return np.dtype("int8") if kind.name.startswith("int") else np.dtype("uint8")
    return np.dtype("uint8") if kind.itemsize == 1 and kind.name not in ("int8", "uint8", "bool") else kind


def _stored(array: jax.Array) -> jax.Array:
    """An array in its carrier: integers widened, floats of a byte or less as bytes (of E4M3, which holds E2M1)."""
    kind, carrier = array.dtype, _carrier(array.dtype)
    if carrier == kind:
        return array
    if "int" in kind.name:
        return array.astype(carrier)
    whole = array.astype(jnp.float8_e4m3fn) if kind.name in SUB_BYTE else array
    return jax.lax.bitcast_convert_type(whole, carrier)


def _restored(array: jax.Array, kind: np.dtype) -> jax.Array:
    """The inverse of `_stored`."""
    if array.dtype == kind or "int" in kind.name:
        return array.astype(kind)
    if kind.name in SUB_BYTE:
        return jax.lax.bitcast_convert_type(array, jnp.float8_e4m3fn).astype(kind)
    return jax.lax.bitcast_convert_type(array, kind)
