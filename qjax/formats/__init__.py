"""Numbers: elements, formats, their names, and packing. Knows arrays only."""

from qjax.formats.choosing import choice
from qjax.formats.elements import (
    BF16,
    BINARY,
    BNB_FP4,
    E2M1,
    E2M3,
    E3M2,
    E4M3,
    E5M2,
    E8M0,
    FP16,
    NF4,
    PRESETS,
    UE5M3,
    Element,
    element,
)
from qjax.formats.fixed import Fixed
from qjax.formats.format import FULL, Choice, Format, Levels
from qjax.formats.integer import Int
from qjax.formats.minifloat import Float
from qjax.formats.named import NAMED, NVFP4
from qjax.formats.one_of import OneOf
from qjax.formats.packing import from_words, pack, unpack, words
from qjax.formats.posit import Posit
from qjax.formats.shifted_squeezed import ShiftedSqueezed, from_s2fp8, to_s2fp8
from qjax.formats.spelling import EXAMPLES, as_format, describe, parse, spell
from qjax.formats.table import Table

__all__ = [
    "BF16",
    "BINARY",
    "BNB_FP4",
    "E2M1",
    "E2M3",
    "E3M2",
    "E4M3",
    "E5M2",
    "E8M0",
    "EXAMPLES",
    "FP16",
    "FULL",
    "NAMED",
    "NF4",
    "NVFP4",
    "PRESETS",
    "UE5M3",
    "Choice",
    "Element",
    "Fixed",
    "Float",
    "Format",
    "Int",
    "Levels",
    "OneOf",
    "Posit",
    "ShiftedSqueezed",
    "Table",
    "as_format",
    "choice",
    "describe",
    "element",
    "from_s2fp8",
    "from_words",
    "pack",
    "parse",
    "spell",
    "to_s2fp8",
    "unpack",
    "words",
]
