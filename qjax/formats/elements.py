"""What every element offers, the presets, and elements by name."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from typing import Protocol, cast, runtime_checkable

import numpy as np
from jax import Array

from qjax.codebooks import shifts
from qjax.codebooks.block_medians import abnormal_float
from qjax.codebooks.float_int import flint
from qjax.codebooks.known_density import lloyd_max
from qjax.codebooks.normal_quantiles import normal_float
from qjax.formats.fixed import Fixed
from qjax.formats.integer import Int
from qjax.formats.minifloat import Float, Specials, usual
from qjax.formats.posit import Posit
from qjax.formats.table import Table


@runtime_checkable
class Element(Protocol):
    """A set of representable values and their codes: frozen, hashable, known by `name` alone.

    Codes are integers of `code_dtype`, one or two bytes each. `encode` is the one guarded cast: nearest, ties to even,
    saturating, with a stated NaN policy.
    """

    @property
    def name(self) -> str: ...
    @property
    def bits(self) -> int: ...
    @property
    def code_dtype(self) -> str: ...
    @property
    def min(self) -> float: ...
    @property
    def max(self) -> float: ...
    @property
    def top_exponent(self) -> int: ...
    def values(self) -> np.ndarray: ...
    def levels(self) -> np.ndarray: ...
    def encode(self, x: Array, table: Array | None = None) -> Array: ...
    def decode(self, codes: Array, table: Array | None = None) -> Array: ...
    def round(self, x: Array, table: Array | None = None) -> Array: ...
    def neighbours(self, x: Array, table: Array | None = None) -> tuple[Array, Array]: ...


E4M3 = Float(4, 3, specials="nan")
E5M2 = Float(5, 2, specials="ieee")
E3M2 = Float(3, 2)
E2M3 = Float(2, 3)
E2M1 = Float(2, 1)
BF16 = Float(8, 7, specials="ieee")
FP16 = Float(5, 10, specials="ieee")
E8M0 = Float(8, 0, specials="nan", signed=False, zero=False)
UE5M3 = Float(5, 3, specials="nan", signed=False)
NF4 = Table("nf4", normal_float(4))
BINARY = Table("binary", (-1.0, 1.0), cuts=(0.0,))
"""The sign; zero, either one, is positive (catalogue K1). Ternary values are those of `Int(2, narrow=True)`."""
_BNB = (0.0625, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0)
BNB_FP4 = Table("bnb_fp4", (*(-v for v in reversed(_BNB)), 0.0, *_BNB))
"""The FP4 of bitsandbytes in units of a twelfth: E2M1 at half its usual place but for the smallest value."""

PRESETS: dict[str, Element] = {
    e.name: e for e in (E4M3, E5M2, E3M2, E2M3, E2M1, BF16, FP16, E8M0, UE5M3, NF4, BINARY, BNB_FP4)
}


def _int(unsigned: str, bits: str, narrow: str | None) -> Int:
    return Int(int(bits), narrow=bool(narrow), signed=not unsigned)


def _float(
    sign: str,
    base: str,
    exponent: str,
    mantissa: str,
    bias: str | None,
    given: str | None,
    zero: str | None,
    flush: str,
) -> Float:
    specials, signed, has_zero = usual(base)
    return Float(
        int(exponent),
        int(mantissa),
        bias=None if bias is None else int(bias),
        specials=cast(Specials, given or specials),
        subnormals=not flush,
        signed=sign == "s" if sign else signed,
        zero=zero == "zero" if zero else has_zero,
    )


def _log(name: str, unsigned: str, bits: str, steps: str | None, nozero: str | None) -> Table:
    levels = shifts.powers(int(bits), int(steps or 1), not nozero, not unsigned)
    return Table(name, levels, shifts.log_middles(levels, int(steps or 1)))


# Each with what its groups make; the whole name comes first where it is the name of a table.
_FAMILIES: tuple[tuple[str, Callable[..., Element]], ...] = (
    (r"(u?)int([1-9]|1[0-6])(_narrow)?", lambda _, *parts: _int(*parts)),
    (
        r"([us]?)(e(\d)m(\d+))(?:b(-?\d+))?(?:_(none|nan|ieee|fnuz))?(?:_(zero|nozero))?(_flush)?",
        lambda _, *parts: _float(*parts),
    ),
    (r"(u?)q(\d+)\.(\d+)", lambda _, unsigned, m, n: Fixed(int(m), int(n), signed=not unsigned)),
    (r"posit(\d+)(?:es(\d))?", lambda _, bits, es: Posit(int(bits), int(es or 2))),
    (r"nf([2-8])", lambda name, bits: Table(name, normal_float(int(bits)))),
    (r"af([2-8])(?:b(\d+))?", lambda name, bits, block: Table(name, abnormal_float(int(block or 64), int(bits)))),
    (r"lloyd([1-8])_([a-z]+\d*)", lambda name, bits, density: Table(name, lloyd_max(2 ** int(bits), density))),
    (r"flint([3-8])", lambda name, bits: Table(name, flint(int(bits)))),
    (r"(u?)log([2-8])(?:x(\d+))?(_nozero)?", _log),
    (r"(u?)apot([2-9])", lambda name, u, bits: Table(name, shifts.additive_powers(int(bits), signed=not u))),
    (r"sp2_([3-8])", lambda name, bits: Table(name, shifts.two_powers(int(bits)))),
    (r"abfloat_e(\d)m(\d)b(\d+)", lambda name, *sizes: Table(name, shifts.abfloat(*map(int, sizes)))),
)
_EXAMPLES = ("int8", "int4", "int4_narrow", "uint4", "e3m4", "q3.4", "posit8", "posit8es1", "nf3", "af4", "flint4")
_EXAMPLES += ("lloyd4_normal", "lloyd4_laplace", "lloyd4_beta128", "log4", "log4x2", "log4_nozero", "ulog4", "apot4")
_EXAMPLES += ("sp2_4", "abfloat_e2m1b2")


def element(name: str) -> Element:
    """The element called `name`: a preset or of a family. Tables of one's own have no entry here.

    - integers `int4`, `uint3`, `int4_narrow`, of which `int2_narrow` is the ternary one; fixed point `q3.4`, `uq0.8`;
    - minifloats `e3m4`, `ue4m3`, `e4m3b11_fnuz`; posits `posit8`, `posit8es1`; `flint4`; `abfloat_e2m1b2`, of bias 2;
    - levels for a density: `nf4`; `af4`, `af4b128` for blocks of 64 and 128; `lloyd4_normal`, `lloyd4_laplace`,
      `lloyd4_beta128`;
    - powers of two, rounded as logarithms: `log4`, `log4x2` (two a binade), `log4_nozero`, `ulog4`;
    - sums of powers of two `apot4`, `uapot4`, `sp2_4`; and `binary`, `bnb_fp4`.

    Raises ValueError with close names for an unknown one, and what is wrong where the numbers do not fit.

    >>> element("e2m1").max, element("int4_narrow").min, element("log3").levels().tolist()
    (6.0, -7.0, [-1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0])
    """
    if name in PRESETS:
        return PRESETS[name]
    for pattern, build in _FAMILIES:
        if match := re.fullmatch(pattern, name):
            return build(name, *match.groups())
    close = difflib.get_close_matches(name, [*PRESETS, *_EXAMPLES], n=4, cutoff=0.3)
    raise ValueError(f"unknown element {name!r}; close names: {', '.join(close) or 'none'}")
