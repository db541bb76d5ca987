"""Elements given by a list of values: NF4 and every other scalar codebook."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.sharding import AxisType

F32_MAX = float(np.finfo(np.float32).max)


@dataclass(frozen=True)
class Table:
    """Ascending values; a code is an index into them (catalogue A26).

    Numbers go to the nearest value, ties to the even code, unless `cuts` say for each pair of neighbours where the
    upper one begins: at the geometric mean, to round logarithms.

    A quantized array may carry its own values (`QArray.table`); then these are only the starting point and fix the
    number of levels. Where a method takes a `table`, its last axis is the levels and the axes before it broadcast
    against the array.

    >>> Table("ternary", (-1.0, 0.0, 1.0)).bits
    2
    """

    name: str
    entries: tuple[float, ...]
    cuts: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        entries = np.asarray(self.entries, np.float32)
        if not 2 <= len(entries) <= 65536:
            raise ValueError(f"table {self.name!r} has {len(entries)} values, expected 2..65536")
        if not np.all(np.isfinite(entries)) or not np.all(np.diff(entries) > 0) or not entries[-1] > 0:
            raise ValueError(f"the values of table {self.name!r} must be finite, ascending and end above zero")
        cuts = np.asarray(self.cuts, np.float32)
        if self.cuts and (len(cuts) != len(entries) - 1 or not np.all((entries[:-1] < cuts) & (cuts <= entries[1:]))):
            raise ValueError(f"table {self.name!r} needs one cut above each value up to the next, got {self.cuts}")

    @property
    def bits(self) -> int:
        return (len(self.entries) - 1).bit_length()

    @property
    def code_dtype(self) -> str:
        return "uint8" if self.bits <= 8 else "uint16"

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

        `cuts` say otherwise. A tie between entries of a `table` of its own goes to the higher code.
        """
        x = jnp.clip(x, jnp.float32(-F32_MAX), jnp.float32(F32_MAX))
        x = jnp.where(jnp.isnan(x), jnp.float32(0), x)
        if table is None:
            cuts = np.asarray(self.cuts or _thresholds(self.entries), np.float32)
        else:
            # To the higher code, because these midpoints are themselves rounded to float32.
            cuts = table[..., :-1] * jnp.float32(0.5) + table[..., 1:] * jnp.float32(0.5)
        return place(cuts, x).astype(self.code_dtype)

    def decode(self, codes: Array, table: Array | None = None) -> Array:
        """Entries of `codes` as float32."""
        return look_up(self.values() if table is None else table.astype(jnp.float32), codes)

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


def place(cuts: Array | np.ndarray, x: Array) -> Array:
    """How many of ascending `cuts` [..., n] are at most `x`, as int32; the axes in front broadcast against `x`."""
    n = cuts.shape[-1]
    if n < COMPARED:
        # A binary search, one bit of the count at a time; a tree of selects looks up the cut, which vectorizes.
        bits = n.bit_length()
        # No float reaches NaN; the largest integer reaches itself, which the last line takes back.
        floating = jnp.issubdtype(cuts.dtype, jnp.floating)
        never = jnp.asarray(jnp.nan if floating else jnp.iinfo(cuts.dtype).max, cuts.dtype)
        leaves = [*(cuts[..., i] for i in range(n)), *[never] * (2**bits - 1 - n)]
        count, reached = jnp.zeros(x.shape, jnp.uint8), []
        for bit in reversed(range(bits)):
            reached.insert(0, x >= _choose(leaves[2**bit - 1 :: 2 ** (bit + 1)], reached))
            count = count | jnp.where(reached[0], jnp.uint8(1 << bit), jnp.uint8(0))
        count = count.astype(jnp.int32)
        return count if floating else jnp.minimum(count, n)
    count = jnp.zeros(x.shape, jnp.int32)
    for step in reversed(range(n.bit_length())):
        further = count + (1 << step)
        above = x >= look_up(cuts, jnp.minimum(further, n) - 1)
        count = jnp.where((further <= n) & above, further, count)
    return count


def look_up(table: Array | np.ndarray, index: Array) -> Array:
    """`table` [..., n] at `index`, whose axes the table's axes in front broadcast against."""
    n = table.shape[-1]
    if table.ndim == 1:
        # On an Explicit mesh a gather has to say where it goes: to where the codes lie.
        lies = jax.typeof(index).sharding
        sharding = lies if AxisType.Explicit in lies.mesh.axis_types else None
        return jnp.asarray(table).at[index.astype(jnp.int32)].get(mode="clip", out_sharding=sharding)
    if n <= COMPARED:  # a tree of selects vectorizes; a gather from many small tables does not
        bits = (n - 1).bit_length()
        leaves = [table[..., i] for i in range(n)]
        leaves += [leaves[-1]] * (2**bits - n)
        code = index.astype(jnp.uint8)
        return jnp.broadcast_to(_choose(leaves, [(code & jnp.uint8(1 << i)) != 0 for i in range(bits)]), index.shape)
    row = jnp.arange(table.size // n, dtype=jnp.int32).reshape(table.shape[:-1])
    return jnp.take(table.reshape(-1), row * n + index.astype(jnp.int32), mode="clip")


def _choose(leaves: list[Array], upper: list[Array]) -> Array:
    """One of 2^n leaves elementwise by n conditions, that of the lowest bit first."""
    for condition in upper:
        leaves = [jnp.where(condition, b, a) for a, b in zip(leaves[::2], leaves[1::2], strict=True)]
    return leaves[0]


COMPARED = 256
TINY = np.finfo(np.float32).tiny


@functools.cache
def _thresholds(entries: tuple[float, ...]) -> tuple[float, ...]:
    """For each pair of neighbours the least float32 that belongs to the upper one (ties to the even code).

    The midpoint of two float32 is exact in float64, so that `x >= threshold` decides as exact arithmetic would.
    """
    values = np.asarray(entries, np.float32).astype(np.float64)
    middle = (values[:-1] + values[1:]) / 2
    cuts = middle.astype(np.float32)
    even_below = np.arange(len(cuts)) % 2 == 0
    above = (cuts < middle) | ((cuts == middle) & even_below)
    cuts = np.where(above, np.nextafter(cuts, np.float32(np.inf)), cuts)
    # Above zero comes a subnormal, which XLA would take for zero.
    return tuple(np.where((cuts > 0) & (cuts < TINY), TINY, cuts).tolist())
