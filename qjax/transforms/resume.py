"""A run's progress on disk: after each stage its leaves, rows and streams, so that a killed run goes on where it was.

The folder belongs to one run: its fingerprint (recipe, parameters, batches, key, settings) is written first, and
another run's fingerprint is refused rather than mixed in. What is restored is what was computed, so the result is
bit-equal.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qjax.serialization import load, save


def fingerprint(*parts: Any) -> str:
    """SHA-256 over the structure and the bytes of pytrees, and the text of everything else."""
    h = hashlib.sha256()
    for leaf_path, leaf in jax.tree_util.tree_leaves_with_path(parts):
        h.update(jax.tree_util.keystr(leaf_path).encode())
        if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if isinstance(leaf, jax.Array | np.ndarray):
            array = np.ascontiguousarray(leaf)
            h.update(f"{array.dtype}{array.shape}".encode())
            h.update(array.reshape(-1).view(np.uint8).data)
        else:
            h.update(repr(leaf).encode())
    return h.hexdigest()


class Progress:
    """The saved blocks of one run, or of one pass of it. Without a folder nothing is kept."""

    def __init__(self, folder: str | os.PathLike[str] | None, identity: str) -> None:
        """Open a folder for a run.

        Raises:
            ValueError: the folder holds another run.
        """
        self._folder = None if folder is None else Path(folder)
        if self._folder is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        mark = self._folder / "run.json"
        if not mark.exists():
            scratch = mark.with_suffix(".tmp")
            scratch.write_text(json.dumps({"identity": identity}))
            scratch.replace(mark)
        elif json.loads(mark.read_text())["identity"] != identity:
            raise ValueError(
                f"{folder} holds the progress of another run (recipe, parameters, batches, key or settings differ); "
                "give another folder or remove it"
            )

    def of(self, n: int) -> Progress:
        """The part of pass n."""
        part = object.__new__(Progress)
        part._folder = None if self._folder is None else self._folder / f"pass-{n}"
        return part

    def finished(self) -> int:
        """How many blocks, counted from the first, need not be done again."""
        if self._folder is None:
            return 0
        return next(i for i in itertools.count() if not self._file("block", i).exists())

    def block(self, i: int) -> Any:
        """What `keep` saved of a finished block."""
        return load(self._file("block", i))

    def streams(self, i: int) -> Any:
        """The streams behind the last finished block."""
        return load(self._file("streams", i))

    def keep(self, i: int, block: Any, streams: Any) -> None:
        """Save a finished block and the streams behind it; only the newest streams stay."""
        if self._folder is None:
            return
        save(self._file("streams", i), streams)  # first: a block counts as finished when its own file is there
        save(self._file("block", i), block)
        self._file("streams", i - 1).unlink(missing_ok=True)

    def _file(self, kind: str, i: int) -> Path:
        assert self._folder is not None
        return self._folder / f"{kind}-{i:04d}.safetensors"
