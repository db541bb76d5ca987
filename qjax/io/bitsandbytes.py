"""bitsandbytes: weights of 4 bits from a table of 16 values, as QLoRA keeps them (catalogue U4).

As in bitsandbytes 0.50 (`functional.py`, `QuantState`): the matrix [outputs, inputs] row after row, two codes a byte,
the first in the high half; in each block of the row the table times an absmax. Doubly quantized, the absmax are codes
of a table of 256 values under a float32 for each 256 of them, plus an offset. The table of FP4 is not ascending and has
zero twice; here codes count up through its values.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array

from qjax.formats import FULL
from qjax.formats.elements import NF4
from qjax.formats.table import Table
from qjax.io.exact import narrowest
from qjax.qarray import Meta, QArray

KINDS = ("nf4", "fp4")
SINGLE = ("weight.absmax", "weight.quant_map")
DOUBLE = ("weight.nested_absmax", "weight.nested_quant_map")


class FourBits(NamedTuple):
    """How a module is read. kind: what its settings call the table, "nf4" or "fp4"."""

    kind: str

    def read(self, module: str, tensors: Mapping[str, np.ndarray], shape: tuple[int, int]) -> QArray:
        """The leaf [inputs, outputs] that a module's tensors hold, its absmax as nested scales where they are codes.

        Where the blocks of absmax do not lie in whole rows, or rows in whole blocks, the absmax are float32: the same
        values, with no codes of their own.

        Raises:
            ValueError: a tensor that is missing, unknown, of another shape or dtype, or holds no such numbers.
        """
        record = f"weight.quant_state.bitsandbytes__{self.kind}"
        double = any(name in tensors for name in DOUBLE)
        wanted = {"weight", record, *SINGLE, *(DOUBLE if double else ())}
        if missing := sorted(wanted - set(tensors)):
            raise ValueError(f"{module} lacks {', '.join(missing)}, which {self.kind} has; it has {', '.join(tensors)}")
        if extra := sorted(set(tensors) - wanted):
            raise ValueError(f"{module} has {', '.join(extra)}, of which bitsandbytes says nothing")
        inputs, outputs = shape
        state = _state(f"{module}.{record}", tensors[record], self.kind, [outputs, inputs], double)
        size = state["blocksize"]
        if inputs % size:
            raise ValueError(
                f"{module}: blocks of {size} reach across rows of {inputs} inputs, which no layout here has"
            )
        element, places = _table(f"{module}.weight.quant_map", tensors["weight.quant_map"], self.kind, 16)
        pairs = np.ascontiguousarray(tensors["weight"]).reshape(-1).view(np.uint8)
        if 2 * len(pairs) != inputs * outputs:
            raise ValueError(f"{module}.weight has {len(pairs)} bytes, {outputs} x {inputs} codes need half as many")
        codes = places[np.stack([pairs >> 4, pairs & 15], axis=-1)].reshape(outputs, inputs)
        absmax = _checked(module, SINGLE[0], tensors, "uint8" if double else "float32", inputs * outputs // size)
        absmax = absmax.reshape(outputs, -1)
        scale = _nested(module, absmax, tensors, state) if double else _array(narrowest(absmax.T))
        return QArray(_array(codes.T), (scale,), None, None, Meta(element, (size, 1)))


def schemes(config: Mapping[str, Any]) -> Callable[[str], FourBits | None]:
    """How each module is read: the settings of a checkpoint.

    Raises:
        ValueError: 8 bits, or another table.
    """
    kind = config.get("bnb_4bit_quant_type", "fp4")  # transformers' default
    if not config.get("load_in_4bit", config.get("_load_in_4bit")) or kind not in KINDS:
        raise ValueError(
            f"bitsandbytes: bnb_4bit_quant_type {kind!r} cannot be read, only 4 bits of {' or '.join(KINDS)}"
        )
    skipped = config.get("llm_int8_skip_modules")
    skipped = ["lm_head"] if skipped is None else list(skipped)
    patterns = [re.compile(rf"(?:{name})(?:(?<=\.)|(?=\.|$))") for name in skipped]

    def of(module: str) -> FourBits | None:
        left = any(pattern.match(module) for pattern in patterns) or module.endswith(tuple(skipped))
        return None if left else FourBits(kind)

    return of


def _state(what: str, record: np.ndarray, kind: str, shape: list[int], double: bool) -> dict[str, Any]:
    """The numbers beside the tensors: JSON in a tensor of bytes."""
    if record.dtype != np.uint8 or record.ndim != 1:
        raise ValueError(f"{what} is {record.dtype.name}{list(record.shape)}, not the bytes of a JSON text")
    try:
        state = json.loads(record.tobytes())
    except ValueError as error:
        raise ValueError(f"{what} is not JSON: {error}") from error
    if not isinstance(state, dict) or (state.get("quant_type"), state.get("shape")) != (kind, shape):
        raise ValueError(f"{what} says {state}, the model needs quant_type {kind} and shape {shape}")
    for key in ("blocksize", *(["nested_blocksize"] if double else [])):
        if type(state.get(key)) is not int or state[key] <= 0:
            raise ValueError(f"{what}: {key} is {state.get(key)!r}, not the size of a block")
    offset = state.get("nested_offset", 0.0)
    if double and not (type(state.get("nested_offset")) in (int, float) and np.isfinite(np.float32(offset))):
        raise ValueError(f"{what}: nested_offset is {state.get('nested_offset')!r}, not a finite number")
    return state


def _checked(module: str, name: str, tensors: Mapping[str, np.ndarray], dtype: str, size: int) -> np.ndarray:
    """A tensor as a vector of finite numbers."""
    a = tensors[name]
    if a.dtype.name != dtype or a.size != size:
        raise ValueError(f"{module}.{name} is {a.dtype.name} of {a.size} numbers, the model needs {dtype} of {size}")
    if dtype == "float32" and not np.all(np.isfinite(a)):
        raise ValueError(f"{module}.{name}: a scale is not finite")
    return a.reshape(-1)


def _table(what: str, entries: np.ndarray, kind: str, size: int) -> tuple[Table, np.ndarray]:
    """The element of a table, and where each of its codes is among the ascending values."""
    if entries.dtype != np.float32 or entries.size != size:
        raise ValueError(f"{what} is {entries.dtype.name} of {entries.size} numbers, not float32 of {size}")
    values, places = np.unique(entries, return_inverse=True)
    if not np.all(np.isfinite(values)) or len(values) < 2 or values[-1] <= 0:
        raise ValueError(f"{what} holds no finite values, some above zero: {entries}")
    named = kind == "nf4" and np.array_equal(values, NF4.values())
    table = NF4 if named else Table(f"bnb_{kind}", tuple(values.tolist()))
    return table, places.reshape(-1).astype(np.uint8)


def _nested(
    module: str, codes: np.ndarray, tensors: Mapping[str, np.ndarray], state: Mapping[str, Any]
) -> Array | QArray:
    """Absmax [inputs / blocksize, outputs] from their codes [outputs, ...]."""
    (rows, width), size = codes.shape, state["nested_blocksize"]
    element, places = _table(f"{module}.{DOUBLE[1]}", tensors[DOUBLE[1]], "dynamic8", 256)
    outer = _checked(module, DOUBLE[0], tensors, "float32", -(-codes.size // size))
    codes, offset = places[codes], np.float32(state["nested_offset"])
    if len(outer) == 1:
        block, outer = (FULL, FULL), outer.reshape(1, 1)
    elif size % width == 0 and rows % (size // width) == 0:
        block, outer = (FULL, size // width), outer.reshape(1, -1)
    elif width % size == 0:
        block, outer = (size, 1), outer.reshape(rows, -1).T
    else:
        each = np.repeat(outer, size)[: codes.size].reshape(codes.shape)
        return _array((element.values()[codes] * each + offset).T)
    minimum = jnp.full((1, 1), offset, jnp.float32)
    return QArray(_array(codes.T), (_array(outer),), minimum, None, Meta(element, block, "minimum"))


def _array(a: np.ndarray) -> Array:
    return jnp.asarray(np.ascontiguousarray(a))
