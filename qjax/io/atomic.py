"""Writing all or nothing."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def atomically(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A place beside `path`, for a file or folder, that becomes `path` when the block ends well and vanishes otherwise.

    Raises:
        FileExistsError: there is something at `path` already; it is left as it is.
    """
    target = Path(path)
    if target.exists() or target.is_symlink():
        raise FileExistsError(f"{target} exists; remove it, or export to another path")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}."))
    try:
        yield scratch / target.name
        os.rename(scratch / target.name, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
