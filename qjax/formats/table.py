"""Elements given by a list of values: NF4 and every other scalar codebook."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import jax.numpy as jnp
import numpy as np
from jax import Array


@dataclass(frozen=True)
class Table:
    """Ascending `values`; a code is an index into them (catalogue A26).

    A quantized array may carry its own values (`QArray.table`, shape [batch..., len(values)]); then these are only
    the starting point and fix the number of levels.

    >>> Table("ternary", (-1.0, 0.0, 1.0)).bits
    2
    """

    name: str
    entries: tuple[float, ...]

    def __post_init__(self) -> None:
        entries = np.asarray(self.entries, np.float32)
        if not 2 <= len(entries) <= 256:
            raise ValueError(f"table {self.name!r} has {len(entries)} values, expected 2..256")
        if not np.all(np.isfinite(entries)) or not np.all(np.diff(entries) > 0) or not entries[-1] > 0:
            raise ValueError(f"the values of table {self.name!r} must be finite, ascending and end above zero")

    @property
    def bits(self) -> int:
        return (len(self.entries) - 1).bit_length()

    @property
    def code_dtype(self) -> str:
        return "uint8"

    @property
    def min(self) -> float:
        return float(np.float32(self.entries[0]))

    @property
    def max(self) -> float:
        return float(np.float32(self.entries[-1]))

    @property
    def top_exponent(self) -> int:
        """floor(log2(max))."""
        return math.floor(math.log2(self.max))

    def values(self) -> np.ndarray:
        """Value of every code as float32."""
        return np.asarray(self.entries, np.float32)

    def levels(self) -> np.ndarray:
        """The representable values, ascending."""
        return self.values()

    def encode(self, x: Array, table: Array | None = None) -> Array:
        """Codes of the entries nearest to `x` (float32): ties to the even code, saturating, NaN as zero.

        `table` [batch..., levels] replaces the values; `x` is then [batch..., more axes].
        """
        x = jnp.where(jnp.isnan(x), jnp.float32(0), x)
        if table is None:
            cuts = [jnp.float32(cut) for cut in _thresholds(self.entries)]
        else:
            # A tie of a learned table goes to the higher code: its midpoints are themselves rounded to float32.
            middle = table[..., :-1] * jnp.float32(0.5) + table[..., 1:] * jnp.float32(0.5)
            cuts = [_against(middle[..., i], x) for i in range(len(self.entries) - 1)]
        code = jnp.zeros(x.shape, jnp.uint8)
        for cut in cuts:  # one vectorized compare and add a level: faster on CPU than any search or gather up to 256
            code = code + (x >= cut).astype(jnp.uint8)
        return code

    def decode(self, codes: Array, table: Array | None = None) -> Array:
        """Entries of `codes` as float32; `table` [batch..., levels] replaces the values."""
        if table is None:
            # A tree of selects vectorizes; a gather from a small table does not.
            leaves = [jnp.float32(value) for value in self.values()]
        else:
            leaves = [_against(table[..., i], codes) for i in range(len(self.entries))]
        leaves += [leaves[-1]] * (2**self.bits - len(leaves))
        code = codes.astype(jnp.uint8)
        for bit in range(self.bits):
            upper = (code & jnp.uint8(1 << bit)) != 0
            leaves = [jnp.where(upper, b, a) for a, b in zip(leaves[::2], leaves[1::2], strict=True)]
        return jnp.broadcast_to(leaves[0], codes.shape)

    def round(self, x: Array, table: Array | None = None) -> Array:
        """`decode(encode(x))` as float32."""
        return self.decode(self.encode(x, table), table)

    def neighbours(self, x: Array, table: Array | None = None) -> tuple[Array, Array]:
        """The entries just below and above `x` (equal where `x` is one); both saturate."""
        x = jnp.where(jnp.isnan(x), jnp.float32(0), x)
        code = self.encode(x, table).astype(jnp.int32)
        here = self.decode(code, table)
        last = len(self.entries) - 1
        below = self.decode(jnp.where(here > x, jnp.maximum(code - 1, 0), code), table)
        above = self.decode(jnp.where(here < x, jnp.minimum(code + 1, last), code), table)
        return below, above


def _against(entry: Array, x: Array) -> Array:
    """One table entry [batch...] with axes appended so that it broadcasts against x [batch..., more axes]."""
    return entry.reshape(entry.shape + (1,) * (x.ndim - entry.ndim)).astype(jnp.float32)


@functools.cache
def _thresholds(entries: tuple[float, ...]) -> tuple[float, ...]:
    """For each pair of neighbours the least float32 that belongs to the upper one (ties to the even code).

    The midpoint of two float32 is exact in float64, so that `x >= threshold` decides as exact arithmetic would.
    """
    values = np.asarray(entries, np.float32).astype(np.float64)
    cuts = []
    for low, middle in enumerate((values[:-1] + values[1:]) / 2):
        cut = np.float32(middle)
        if cut < middle or (cut == middle and low % 2 == 0):
            cut = np.nextafter(cut, np.float32(np.inf))
        cuts.append(float(cut))
    return tuple(cuts)
