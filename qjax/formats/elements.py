"""What every element offers, the presets, and elements by name."""

from __future__ import annotations

import difflib
import re
from typing import Protocol, cast, runtime_checkable

import numpy as np
from jax import Array

from qjax.codebooks.normal_quantiles import normal_float
from qjax.formats.integer import Int
from qjax.formats.minifloat import Float, Specials, usual
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

PRESETS: dict[str, Element] = {e.name: e for e in (E4M3, E5M2, E3M2, E2M3, E2M1, BF16, FP16, E8M0, UE5M3, NF4)}

_INT = re.compile(r"(u?)int([1-9]|1[0-6])(_narrow)?")
_FLOAT = re.compile(r"([us]?)(e(\d)m(\d+))(?:b(-?\d+))?(?:_(none|nan|ieee|fnuz))?(?:_(zero|nozero))?(_flush)?")


def element(name: str) -> Element:
    """The element called `name`: a preset, any integer ("uint3", "int4_narrow") or minifloat ("e3m4", "ue4m3").

    Raises ValueError with close names for an unknown one. Tables of one's own have no entry here.

    >>> element("e2m1").max, element("int4_narrow").min
    (6.0, -7.0)
    """
    if name in PRESETS:
        return PRESETS[name]
    if match := _INT.fullmatch(name):
        unsigned, bits, narrow = match.groups()
        return Int(int(bits), narrow=bool(narrow), signed=not unsigned)
    if match := _FLOAT.fullmatch(name):
        sign, base, exponent, mantissa, bias, given, zero, flush = match.groups()
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
    close = difflib.get_close_matches(name, [*PRESETS, "int8", "int4", "int4_narrow", "uint4", "e3m4"], n=4, cutoff=0.3)
    raise ValueError(f"unknown element {name!r}; close names: {', '.join(close) or 'none'}")
