"""Windows: a long run of tokens cut into rows of equal length."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike


def windows(tokens: ArrayLike, length: int, count: int | None = None) -> np.ndarray:
    """Non-overlapping windows from the start: int32 [count, length]; the tail that fills no window is dropped.

    `count=None` takes all. Raises ValueError when the tokens fill fewer than `count` windows (or none).

    >>> windows(range(7), 3)
    array([[0, 1, 2],
           [3, 4, 5]], dtype=int32)
    """
    flat = np.asarray(tokens)
    if flat.ndim != 1 or not np.issubdtype(flat.dtype, np.integer):
        raise ValueError(f"tokens must be one row of integers, not {flat.dtype} {flat.shape}")
    if length < 2:
        raise ValueError(f"a window of {length} tokens predicts nothing: length must be at least 2")
    available = flat.size // length
    wanted = available if count is None else count
    if wanted < 1 or wanted > available:
        raise ValueError(f"{flat.size} tokens hold {available} windows of {length}, {wanted} were asked for")
    return flat[: wanted * length].reshape(wanted, length).astype(np.int32)


def sample(tokens: ArrayLike, length: int, count: int, seed: int, batch: int = 1) -> Sequence[np.ndarray]:
    """Calibration sample number `seed`: `count` distinct non-overlapping windows, as a list of [batch, length] int32.

    The same seed gives the same windows on every machine (Philox, drawn without replacement, in drawn order).
    Raises ValueError when there are not enough windows or `batch` does not divide `count`.

    >>> [b.shape for b in sample(range(100), length=10, count=4, seed=0, batch=2)]
    [(2, 10), (2, 10)]
    """
    rows = windows(tokens, length)
    if not 0 < count <= len(rows):
        raise ValueError(f"the text holds {len(rows)} windows of {length}, a sample of {count} was asked for")
    if batch < 1 or count % batch:
        raise ValueError(f"batches of {batch} do not divide a sample of {count} windows")
    chosen = np.random.Generator(np.random.Philox(seed)).permutation(len(rows))[:count]
    return [rows[chosen[start : start + batch]] for start in range(0, count, batch)]
