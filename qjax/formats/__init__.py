"""Numbers: elements, formats, their names, and packing. Knows arrays only."""

from qjax.formats.elements import (
    BF16,
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
from qjax.formats.format import FULL, Format, Levels
from qjax.formats.integer import Int
from qjax.formats.minifloat import Float
from qjax.formats.packing import from_words, pack, unpack, words
from qjax.formats.spelling import EXAMPLES, NVFP4, as_format, describe, parse, spell
from qjax.formats.table import Table

__all__ = [
    "BF16",
    "E2M1",
    "E2M3",
    "E3M2",
    "E4M3",
    "E5M2",
    "E8M0",
    "EXAMPLES",
    "FP16",
    "FULL",
    "NF4",
    "NVFP4",
    "PRESETS",
    "UE5M3",
    "Element",
    "Float",
    "Format",
    "Int",
    "Levels",
    "Table",
    "as_format",
    "describe",
    "element",
    "from_words",
    "pack",
    "parse",
    "spell",
    "unpack",
    "words",
]
