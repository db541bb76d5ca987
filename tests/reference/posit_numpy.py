"""Posits by the letter of the Posit Standard (2022), sections 3 and 4.1, in numpy; any exponent size."""

from __future__ import annotations

import numpy as np


def decode(pattern: int, bits: int, es: int) -> float:
    """((1 - 3s) + f) 2^((1 - 2s)(2^es r + e + s)), fields read from the pattern as it stands, without a complement."""
    if pattern == 0:
        return 0.0
    if pattern == 1 << (bits - 1):
        return np.nan
    s = pattern >> (bits - 1)
    rest = [(pattern >> i) & 1 for i in reversed(range(bits - 1))]
    k = 1
    while k < len(rest) and rest[k] == rest[0]:
        k += 1
    r = k - 1 if rest[0] else -k
    tail = rest[k + 1 :]
    exponent, fraction = tail[:es], tail[es:]
    e = sum(bit << (es - 1 - i) for i, bit in enumerate(exponent))
    f = sum(bit / 2 ** (i + 1) for i, bit in enumerate(fraction))
    return ((1 - 3 * s) + f) * 2.0 ** ((1 - 2 * s) * ((r << es) + e + s))


def encode(x: np.ndarray, bits: int, es: int) -> np.ndarray:
    """Patterns as signed integers: the number's endless pattern cut off and rounded half to even; NaN is NaR."""
    mantissa, power = np.frexp(np.abs(x, dtype=np.float64))
    power = np.where(np.isfinite(x) & (x != 0), power - 1, 0).astype(np.int64)
    fraction = np.where(np.isfinite(x), mantissa * 2.0**24 - 2.0**23, 0).astype(np.int64)
    r, e = power >> es, power & (2**es - 1)
    clipped = np.clip(r, -(bits - 1), bits - 2)
    ones = np.where(clipped >= 0, (2 << np.maximum(clipped + 1, 0)) - 2, 1)  # the regime and the bit that ends it
    length = np.where(clipped >= 0, clipped + 2, 1 - clipped) + es + 23
    body = ((ones << es) + e << 23) + fraction
    cut = length - (bits - 1)
    kept, rest, half = body >> cut, body & ((1 << cut) - 1), 1 << (cut - 1)
    kept += (rest > half) | ((rest == half) & (kept % 2 == 1))
    top = 2 ** (bits - 1) - 1
    kept = np.where((r >= bits - 2) | np.isinf(x), top, np.where(r < -(bits - 2), 1, np.clip(kept, 1, top)))
    signed = np.where(x == 0, 0, np.where(x < 0, -kept, kept))
    return np.where(np.isnan(x), -top - 1, signed)
