"""The files of one run: written beside their target and renamed, so a killed run leaves whole files or none."""

from __future__ import annotations

import hashlib
import json
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import numpy as np


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically, keys in insertion order; NaN and infinity raise ValueError (they are not JSON)."""
    write_bytes(path, (json.dumps(value, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Write arrays by name to one npz file, atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.tmp.npz")
    np.savez_compressed(scratch, allow_pickle=False, **arrays)
    os.replace(scratch, path)


def write_bytes(path: Path, data: bytes) -> None:
    """Write bytes to a temporary file in the same folder, flush it to disk, rename it over `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, scratch = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(scratch, 0o644)
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise


def append_line(path: Path, record: dict[str, Any]) -> None:
    """Add one JSON line to a log (times and memory: whatever may differ from run to run)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(record) + "\n")


def read_json(path: Path) -> Any:
    """The value of a JSON file; a file that is not JSON raises ValueError naming it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error


def digest(value: Any) -> str:
    """Twelve hex digits that name a JSON value whatever the order of its keys.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
    True
    """
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()[:12]


def slug(name: str) -> str:
    """A row's name as a file name.

    >>> slug("GPTQ int4_g64 / seed 0")
    'gptq-int4_g64-seed-0'
    """
    return re.sub(r"[^a-z0-9_.]+", "-", name.lower()).strip("-")
