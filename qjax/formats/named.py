"""The formats that have a name of their own, each a constant: MX, NVFP4, block floating point, and choices.

Catalogue A14, A15, A19-A24, A27-A29.
"""

from __future__ import annotations

from dataclasses import replace

from qjax.codebooks.float_int import flint
from qjax.formats.choosing import choice
from qjax.formats.elements import E2M1, E2M3, E3M2, E4M3, E5M2, UE5M3
from qjax.formats.format import FULL, POWER_OF_TWO_RULES, Format
from qjax.formats.integer import Int
from qjax.formats.minifloat import Float
from qjax.formats.table import Table

MX_BLOCK, NV_BLOCK, A24_BLOCK, BITMOD_BLOCK = 32, 16, 16, 128

MX = {
    "mxfp4": E2M1,
    "mxfp6_e3m2": E3M2,
    "mxfp6_e2m3": E2M3,
    "mxfp8_e4m3": E4M3,
    "mxfp8_e5m2": E5M2,
    "mxint8": Int(8, narrow=True),
    "mxint4": Int(4, narrow=True),
}
"""OCP Microscaling: blocks of 32 under a power of two (catalogue A19, A21)."""

_TENSOR = Format(E4M3, FULL, FULL, scale="float32")
NVFP4 = Format(E2M1, NV_BLOCK, scale=_TENSOR)
"""NVFP4: blocks of 16, E4M3 scales, one float32 for the tensor (catalogue A20)."""

# Of 448, the scale of a block that ends at 4 may use up to 384 = 1.5 x 256, so that both candidates' scales of the
# largest block, 384 and 256, are exact (the authors' code, 2512.02010).
_SIX = Format(E2M1, NV_BLOCK, scale=replace(_TENSOR, reach=384.0))
_FOUR = replace(_SIX, reach=4.0)


def _power_of_two(element: Int | Float, block: int, rule: str = "floor") -> Format:
    return Format(element, block, scale="float8_e8m0fnu", rule=rule)  # type: ignore[arg-type]


def _special(bits: int, value: float) -> Format:
    """A minifloat whose second zero is another value (BitMoD's extra resolution 5 or 3, extra range 8 or 6)."""
    levels = {3: (0.0, 1.0, 2.0, 4.0), 4: (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)}[bits]
    values = sorted({*levels, *(-v for v in levels if v), value})
    # INT8 scales of groups under one float a channel: symmetric, so that 127 is the largest.
    scales = Format(Int(8, narrow=True), FULL, scale="float16")
    return Format(
        Table(f"fp{bits}{value:+g}", tuple(values)), BITMOD_BLOCK, scale=scales, reach=max(abs(v) for v in values)
    )


_FLOAT8 = [Float(e, 7 - e) for e in (2, 3, 4, 5)]
_ANT = (Int(4, narrow=True), Float(3, 0), E2M1, Table("flint4", flint(4)))

NAMED: dict[str, Format] = {
    **{name: _power_of_two(e, MX_BLOCK) for name, e in MX.items()},
    **{f"{name}_{rule}": _power_of_two(e, MX_BLOCK, rule) for name, e in MX.items() for rule in POWER_OF_TWO_RULES},
    "mxfp4_fpquant": _power_of_two(E2M1, MX_BLOCK, "fpquant"),
    "nvfp4": NVFP4,
    "nvint4": replace(NVFP4, element=Int(4, narrow=True)),
    # Without the tensor scale, whatever range the scale type has (catalogue A22).
    "nvfp4_e4m3": replace(NVFP4, scale="float8_e4m3fn"),
    "nvfp4_e8m0": _power_of_two(E2M1, NV_BLOCK),
    "nvfp4_ue5m3": replace(NVFP4, scale=Format(UE5M3, scale=None)),
    "nvfp4_4over6": choice((_SIX, _FOUR)),
    "nvfp4_4over6_mae": choice((_SIX, _FOUR), by="mae"),
    "nvfp4_4over6_max": choice((_SIX, _FOUR), by="max"),
    # Block floating point, block minifloat and block logarithm (arXiv:2310.05079; catalogue A23, A24).
    **{f"bfp{b}": _power_of_two(Int(b, narrow=True), A24_BLOCK) for b in (4, 6, 8)},
    "bm4": _power_of_two(E2M1, A24_BLOCK),
    "bm6": _power_of_two(E2M3, A24_BLOCK),
    "bm8": _power_of_two(Float(4, 3), A24_BLOCK),
    **{f"bl{b}": _power_of_two(Float(b - 1, 0, zero=False), A24_BLOCK, "ceil") for b in (4, 6, 8)},
    # Dynamic fixed point: the most fraction bits for which the tensor's largest magnitude does not saturate (A8).
    **{f"dfp{b}": replace(_power_of_two(Int(b, narrow=True), FULL, "rceil"), across=FULL) for b in (4, 8, 16)},
    # BitMoD (arXiv:2411.11745; catalogue A27), ANT (A28), MoFQ (arXiv:2305.12356; A29).
    "bitmod3": choice([_special(3, v) for v in (3.0, -3.0, 6.0, -6.0)]),
    "bitmod4": choice([_special(4, v) for v in (5.0, -5.0, 8.0, -8.0)]),
    "ant4": choice([Format(e) for e in _ANT], per="tensor"),
    "mofq4": choice([Format(Int(4, narrow=True)), Format(E2M1)], per="tensor"),
    "mofq8": choice([Format(Int(8, narrow=True)), Format(E4M3)], per="tensor"),
    # FP8 whose exponent each tensor chooses (arXiv:2208.09225; A14), and with INT8 beside it (arXiv:2310.13513; A15).
    "fp8_any": choice([Format(e) for e in _FLOAT8], per="tensor"),
    "flex8": choice([Format(e) for e in (Int(8, narrow=True), *_FLOAT8)], per="tensor"),
}
