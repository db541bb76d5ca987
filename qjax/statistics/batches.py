"""What every pass over calibration data asks of its batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def require_batches(batches: Any, weights: Sequence[Any] | None = None) -> None:
    """Check that `batches` can be read more than once and are not empty, with one array of weights each if any.

    Raises:
        TypeError: no Sequence (an iterator would be empty in the second pass).
        ValueError: no batch, or another number of weights.
    """
    if not isinstance(batches, Sequence) or isinstance(batches, str | bytes):
        raise TypeError(
            f"batches must be a sequence that can be read again (collections.abc.Sequence), not "
            f"{type(batches).__name__}: list(batches)"
        )
    if not batches:
        raise ValueError("batches is empty: give at least one batch; what needs no data still reads its shapes")
    if weights is not None and len(weights) != len(batches):
        raise ValueError(f"{len(weights)} weights for {len(batches)} batches: give one array a batch")
