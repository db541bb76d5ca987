"""A pytree of arrays, QArrays and operators as plain JSON values and named arrays: what files of ours hold.

The record has the structure, dtypes and shapes; where the arrays lie is the matter of who keeps it. Nothing is pickled:
a record can only name the node types listed here.
"""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np

from qjax import formats, operators, qarray, ranges
from qjax.qarray import QArray

SCHEMA = 1
SUB_BYTE = {"int4": 4, "uint4": 4, "int2": 2, "uint2": 2, "float4_e2m1fn": 4}

Array = jax.Array | np.ndarray
Put = Callable[[Array, int | None], str]  # keep an array, of codes with that many bits each; returns its name
Get = Callable[[Mapping[str, Any]], Any]  # the array of an entry {"array" or "codes": name, "dtype", "shape", ...}


class RecordError(ValueError):
    """A file that is not a qjax tree, is damaged, or was written by a newer schema."""


def encode(value: Any, put: Put, where: str = "") -> Any:
    """The record of a tree (dicts, lists, tuples, arrays, numbers, strings, QArrays, operators).

    Raises:
        TypeError: a node that has no record; names its place in the tree.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return {"key": str(jax.random.key_impl(value)), "data": encode(jax.random.key_data(value), put, where)}
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        array = np.asarray(value) if isinstance(value, np.generic) else value
        return {"array": put(array, None), **_kind(array)}
    if isinstance(value, _Codes):
        return _codes(value, put)
    if isinstance(value, np.dtype):
        return {"dtype_name": value.name}
    if isinstance(value, dict):
        if not all(isinstance(k, str) for k in value):
            raise TypeError(f"{where or '/'}: a dict with keys that are not strings has no record")
        return {"dict": {k: encode(v, put, f"{where}/{k}") for k, v in value.items()}}
    if dataclasses.is_dataclass(value) and type(value).__name__ in types():
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        if isinstance(value, QArray):
            fields["codes"] = _Codes(value.codes, value.meta.element.bits)
        return {
            "type": type(value).__name__,
            "fields": {k: encode(v, put, f"{where}/{k}") for k, v in fields.items()},
        }
    if isinstance(value, list | tuple) and type(value) in (list, tuple):  # a named tuple has no record
        return {type(value).__name__: [encode(v, put, f"{where}/{i}") for i, v in enumerate(value)]}
    raise TypeError(
        f"{where or '/'}: {type(value).__name__} has no record; save arrays, containers, QArrays or operators"
    )


def decode(record: Any, get: Get) -> Any:
    """The tree of a record; KeyError, TypeError, ValueError or IndexError where it is none."""
    if not isinstance(record, dict):
        return record
    if "array" in record or "codes" in record:
        return get(record)
    if "dtype_name" in record:
        return dtype(record["dtype_name"])
    if "key" in record:
        data = decode(record["data"], get)
        return jax.random.wrap_key_data(data, impl=record["key"]) if isinstance(data, jax.Array) else data
    if "dict" in record:
        return {k: decode(v, get) for k, v in record["dict"].items()}
    if "list" in record:
        return [decode(v, get) for v in record["list"]]
    if "tuple" in record:
        return tuple(decode(v, get) for v in record["tuple"])
    return types()[record["type"]](**{k: decode(v, get) for k, v in record["fields"].items()})


def dtype(name: str) -> np.dtype:
    """The dtype of that name, numpy's or ml_dtypes'."""
    return np.dtype(getattr(ml_dtypes, name, name))


def types() -> dict[str, type]:
    """Every node and static type a record may name: the dataclasses of formats, arrays, ranges and operators."""
    rooms: tuple[ModuleType, ...] = (formats, qarray, operators, ranges)
    return {
        cls.__name__: cls
        for room in rooms
        for cls in vars(room).values()
        if isinstance(cls, type) and dataclasses.is_dataclass(cls)
    }


class _Codes(NamedTuple):
    """Codes that whole bytes hold in memory, though they have `bits` each."""

    array: jax.Array
    bits: int


def _codes(codes: _Codes, put: Put) -> Any:
    array, bits = codes
    whole = not jnp.issubdtype(array.dtype, jnp.integer) or array.dtype.name in SUB_BYTE
    if whole or bits >= 8 * array.dtype.itemsize:
        return {"array": put(array, None), **_kind(array)}
    return {"codes": put(array, bits), "bits": bits, **_kind(array)}


def _kind(array: Array) -> dict[str, Any]:
    return {"dtype": array.dtype.name, "shape": list(array.shape)}


def chosen(record: Any, where: str, at: str = "") -> Any:
    """A record with only those entries of its dicts whose path matches a glob, or lies below one that does."""
    if not (isinstance(record, dict) and "dict" in record):
        return record
    kept = {}
    for name, value in record["dict"].items():
        path = f"{at}/{name}" if at else name
        if fnmatch.fnmatchcase(path, where):
            kept[name] = value
        elif isinstance(value, dict) and "dict" in value and (below := chosen(value, where, path))["dict"]:
            kept[name] = below
    return {"dict": kept}
