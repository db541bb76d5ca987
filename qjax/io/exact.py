"""The same numbers in another dtype, or none; and the one that is only as near as float32 has it, a reciprocal."""

from __future__ import annotations

import ml_dtypes
import numpy as np


def exactly(what: str, a: np.ndarray, dtype: str) -> np.ndarray:
    """The same numbers, or the same bytes of a one-byte code, in `dtype`; "" leaves them as they are.

    Raises:
        ValueError: `dtype` does not hold one of them; names `what`, the number and the remedy.
    """
    target = np.dtype(getattr(ml_dtypes, dtype, dtype)) if dtype else a.dtype
    if a.dtype == target:
        return a
    if a.dtype.itemsize == target.itemsize == 1 and "float8" in a.dtype.name + target.name:
        return np.ascontiguousarray(a).view(target)
    with np.errstate(over="ignore"):  # an infinity is told below
        stored = a.astype(target)
    same = (stored.astype(np.float64) == a.astype(np.float64)) | np.isnan(a.astype(np.float64))
    if not np.all(same):
        raise ValueError(
            f"{what}: {a[~same].flat[0]} is no {dtype}, in which the file keeps it; quantize with scales of that "
            "dtype (a format that ends in _f16, for float16)"
        )
    return stored


def narrowest(a: np.ndarray) -> np.ndarray:
    """Floats in the narrowest of bfloat16, float16 and what they have that keeps them all.

    >>> narrowest(np.float32([0.5, 3.0])).dtype.name, narrowest(np.float32([0.1])).dtype.name
    ('bfloat16', 'float32')
    """
    for dtype in (ml_dtypes.bfloat16, np.float16):
        with np.errstate(over="ignore"):
            narrow = a.astype(dtype)
        if a.dtype.itemsize > 1 and np.array_equal(narrow.astype(np.float32), a.astype(np.float32)):
            return narrow
    return a


def reciprocal(what: str, a: np.ndarray) -> np.ndarray:
    """1 / a in float32, what a file has where it divides.

    Raises:
        ValueError: an infinity, a NaN or a zero, there or here; names `what`.
    """
    with np.errstate(all="ignore"):  # told here
        inverse = np.float32(1) / a
    if not np.all(np.isfinite(inverse)) or not np.all(inverse):
        raise ValueError(f"{what}: {a.flat[0]} has no reciprocal in float32")
    return inverse
