"""Safetensors files in every dtype they have: memory-mapped views of one, and a folder's worth of them written."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

# The safetensors package writes one-byte floats from numpy and cannot read them back into it.
DTYPES: dict[str, np.dtype] = {
    **{name: np.dtype(dtype) for name, dtype in (("F64", "f8"), ("F32", "f4"), ("F16", "f2"), ("BOOL", "?"))},
    **{f"{kind.upper()}{8 * size}": np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)},
    "BF16": np.dtype(ml_dtypes.bfloat16),
    "F8_E4M3": np.dtype(ml_dtypes.float8_e4m3fn),
    "F8_E5M2": np.dtype(ml_dtypes.float8_e5m2),
    "F8_E8M0": np.dtype(ml_dtypes.float8_e8m0fnu),
}
SHARD = 4 * 2**30
"""Bytes of tensors in one file."""
INDEX = "model.safetensors.index.json"


def open_tensors(file: Path) -> dict[str, np.ndarray]:
    """Every tensor of a file, memory-mapped: nothing is read before it is used.

    Raises:
        ValueError: not a readable file (header, offsets, overlaps), or a tensor of a dtype that numpy does not have.
    """
    try:
        with safe_open(file, framework="numpy"):  # its header is checked here: lengths, offsets, overlaps
            pass
    except SafetensorError as error:
        raise ValueError(f"{file} is not a readable safetensors file: {error}") from error
    data = np.asarray(np.memmap(file, np.uint8, mode="r"))
    start = 8 + int.from_bytes(data[:8].tobytes(), "little")
    header = json.loads(data[8:start].tobytes())
    header.pop("__metadata__", None)
    tensors = {}
    for name, record in header.items():
        if record["dtype"] not in DTYPES:
            raise ValueError(f"{file}: {name} is {record['dtype']}, which numpy does not have")
        low, high = record["data_offsets"]
        tensors[name] = data[start + low : start + high].view(DTYPES[record["dtype"]]).reshape(record["shape"])
    return tensors


class Place(NamedTuple):
    """Where a parameter lies: a tensor of a file, its shape as ours, and whether the file has the transpose."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    transposed: bool = False

    def read(self) -> np.ndarray:
        """The parameter, copied: the file is mapped for that long, so its pages do not pile up in memory."""
        tensor = np.array(open_tensors(self.file)[self.name])
        return tensor.T if self.transposed else tensor


def write_tensors(folder: Path, tensors: Mapping[str, np.ndarray], shard: int = SHARD) -> None:
    """`model.safetensors`, or shards of at most `shard` bytes (or one tensor) and their index."""
    groups = shards({name: tensor.nbytes for name, tensor in tensors.items()}, shard)
    for file, group in groups.items():
        save_file({name: tensors[name] for name in group}, folder / file, metadata={"format": "pt"})
    write_index(folder, groups, sum(tensor.nbytes for tensor in tensors.values()))


def shards(sizes: Mapping[str, int], most: int) -> dict[str, list[str]]:
    """File name -> what lies there, in order: of at most `most` bytes together, or one.

    >>> shards({"a": 2, "b": 2, "c": 3}, 4)
    {'model-00001-of-00002.safetensors': ['a', 'b'], 'model-00002-of-00002.safetensors': ['c']}
    """
    groups: list[list[str]] = [[]]
    total = 0
    for name, size in sizes.items():
        if groups[-1] and total + size > most:
            groups.append([])
            total = 0
        groups[-1].append(name)
        total += size
    if len(groups) == 1:
        return {"model.safetensors": groups[0]}
    return {f"model-{i:05}-of-{len(groups):05}.safetensors": group for i, group in enumerate(groups, 1)}


def write_index(folder: Path, groups: Mapping[str, Iterable[str]], total: int) -> None:
    """The index of several files: which tensors lie in each, and the bytes of all. One file needs none."""
    if len(groups) > 1:
        where = {name: file for file, names in groups.items() for name in names}
        index = {"metadata": {"total_size": total}, "weight_map": where}
        (folder / INDEX).write_text(json.dumps(index, indent=2))
