"""The lengths in a GGUF file's header, held against the file before a reader believes them."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import BinaryIO

# Bytes of a value by its type; 8 is a string, 9 an array.
SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
STRING, ARRAY = 8, 9


def check_lengths(path: str | Path) -> None:
    """ValueError where a key, a string or an array of the metadata is longer than what is left of the file.

    `gguf.GGUFReader` walks through an array of any stated length, entry by entry, beyond the end of the file too. Files
    of another byte order are left to it.
    """
    size = Path(path).stat().st_size
    with open(path, "rb") as file:
        if file.read(4) != b"GGUF":
            return
        (version,) = struct.unpack("<I", _bytes(file, 4, size))
        if not 2 <= version < 2**16:
            return
        _, keys = struct.unpack("<QQ", _bytes(file, 16, size))
        for _ in range(keys):
            _skip(file, _number(file, 8, size), size)
            _value(file, _number(file, 4, size), size)


def _value(file: BinaryIO, kind: int, size: int) -> None:
    if kind == STRING:
        _skip(file, _number(file, 8, size), size)
    elif kind == ARRAY:
        inner, count = _number(file, 4, size), _number(file, 8, size)
        if inner in SIZES:
            _skip(file, count * SIZES[inner], size)
        else:
            for _ in range(count):
                _value(file, inner, size)
    elif kind in SIZES:
        _skip(file, SIZES[kind], size)
    else:
        raise ValueError(f"metadata of type {kind}, which GGUF does not have")


def _number(file: BinaryIO, width: int, size: int) -> int:
    return int.from_bytes(_bytes(file, width, size), "little")


def _bytes(file: BinaryIO, count: int, size: int) -> bytes:
    if count > size - file.tell():
        raise ValueError(f"something of {count} bytes begins at byte {file.tell()} of {size}")
    return file.read(count)


def _skip(file: BinaryIO, count: int, size: int) -> None:
    if count > size - file.tell():
        raise ValueError(f"something of {count} bytes begins at byte {file.tell()} of {size}")
    file.seek(count, 1)
