"""A format: an element, the blocks that share a scale, how the scale is chosen and stored, and the offset."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, NoReturn, Protocol, get_args

from jax import Array

from qjax.formats.elements import Element
from qjax.formats.integer import Int
from qjax.formats.table import Table

FULL = -1
"""Block size meaning "the whole axis", whatever its length."""

Rule = Literal["absmax", "half", "signed", "minmax", "floor", "rceil", "even", "ceil", "fpquant", "ggml"]
Offset = Literal["zero_point", "float_zero", "minimum"]
By = Literal["mse", "mae", "max"]
Per = Literal["block", "tensor"]

SCALE_DTYPES = ("float32", "bfloat16", "float16", "float8_e8m0fnu", "float8_e4m3fn", "float8_e5m2")
POWER_OF_TWO_RULES = ("floor", "rceil", "even", "ceil")


class Levels(Protocol):
    """A hashable callable that gives every block a table of its own, fitted to its values or chosen for them.

    x       : float32 values in units of the scale, cut so that `axes` (negative) lie inside a block.
    fmt     : the format that will use the table: as many levels as `fmt.element` has.
    weights : how often each value counts (float32, broadcasts against `x`), once if None; padding weighs nothing.
    Returns ascending values [x with `axes` reduced to size 1, levels].
    """

    def __call__(self, x: Array, axes: tuple[int, ...], fmt: Format, weights: Array | None = None) -> Array: ...


@dataclass(frozen=True)
class Format:
    """How one array is quantized, as data (frozen, hashable; catalogue C1-C4, C6-C8).

    element : the representable values.
    block   : elements along the block axis that share a scale; FULL is the whole axis (per channel).
    across  : elements along every other core axis that share a scale: 1 (each output its own), n (two-dimensional
              tiles, attention heads), FULL. `block=FULL, across=FULL` is one scale for the whole core (per tensor),
              `block=1, across=FULL` one for each entry of the block axis (per input channel).
    scale   : storage dtype of the scales; or a Format: the scales are then quantized themselves (NVFP4, double
              quantization); or None: there is none, the element's values are the numbers (a cast). As the format of
              scales, an integer `block` counts scales: a tile takes as many along the block axis as divide it, then as
              many whole columns as divide the other axis.
    rule    : from a block's range to its scale.
              "absmax" absmax/reach; "half" absmax/((2^b-1)/2), e.g. /7.5; "signed" signed max/-2^(b-1);
              "minmax" (max-min)/(element.max-element.min); and for power-of-two scales, exponent from absmax:
              "floor" (OCP MX), "rceil" (of absmax/reach), "even" (absmax rounded to the element's mantissa
              first), "ceil"; "fpquant" is 4/3 of "floor", which clips nothing (FP-Quant, arXiv:2509.23202);
              "ggml": scales and codes are those of ggml's encoder for this structure (`qjax.ggml`).
              Or a `Choice` among formats: made by `formats.choice`.
    offset  : None; "zero_point": scale*(q - z), z a code, the range widened to hold 0; "float_zero": the same with a
              real z, stored as the scale is; "minimum": scale*q + m.
    levels  : None, or how each block gets a table of its own in place of the element's values (`Levels`); the element
              is a `Table` then.
    reach   : the value that a block's largest magnitude gets, the element's largest if None.
    alpha   : None; or CrossQuant: an element's scale is t^alpha c^(1-alpha)/reach, with t the absmax along the block
              axis (of its row of an activation) and c across it (of its column); `block=FULL, across=1`.
    """

    element: Element
    block: int = FULL
    across: int = 1
    scale: str | Format | None = "bfloat16"
    rule: Rule | Choice = "absmax"
    offset: Offset | None = None
    levels: Levels | None = None
    reach: float | None = None
    alpha: float | None = None

    def __post_init__(self) -> None:
        def refuse(why: str) -> NoReturn:
            raise ValueError(f"format of {self.element.name}: {why}")

        cast = self.scale is None and self.levels is None
        if cast and self.block == FULL and self.across == 1:
            object.__setattr__(self, "across", FULL)
        for field in ("block", "across"):
            size = getattr(self, field)
            if not isinstance(size, int) or isinstance(size, bool) or (size < 1 and size != FULL):
                refuse(f"{field} must be a positive integer or FULL, got {size!r}")
        if isinstance(self.scale, str) and self.scale not in SCALE_DTYPES:
            refuse(f"scale dtype {self.scale!r} is none of {', '.join(SCALE_DTYPES)}")
        if cast and (self.block, self.across) != (FULL, FULL):
            refuse("without a scale there are no blocks: block and across are FULL")
        if self.scale is None and (self.rule, self.offset, self.reach, self.alpha) != ("absmax", None, None, None):
            refuse("without a scale there is nothing to choose: rule 'absmax', no offset, reach or alpha")
        if self.levels is not None and (self.offset == "zero_point" or not isinstance(self.element, Table)):
            refuse("levels of its own need an element that is a Table")
        if self.offset is not None and self.offset not in get_args(Offset):
            refuse(f"offset {self.offset!r} is none of None, {', '.join(get_args(Offset))}")
        if isinstance(self.scale, Format) and self.scale.offset in ("zero_point", "float_zero"):
            refuse("scales are quantized with no offset or with offset 'minimum'")
        if isinstance(self.scale, Format) and (isinstance(self.scale.rule, Choice) or self.scale.alpha is not None):
            refuse("scales are quantized by one format, with one scale a block")
        if isinstance(self.rule, Choice):
            return
        if self.rule not in get_args(Rule):
            refuse(f"scale rule {self.rule!r} is none of {', '.join(get_args(Rule))}")
        integer = isinstance(self.element, Int)
        if self.rule == "half" and self.element.bits == 1:
            refuse("rule 'half' needs two bits: one signed bit holds 0 and -1, which only rule 'signed' can use")
        if self.rule == "signed" and isinstance(self.scale, Format):
            refuse("rule 'signed' gives negative scales, which a format of scales does not hold")
        if self.rule in ("half", "signed") and not (integer and self.element.min < 0):
            refuse(f"rule {self.rule!r} is for signed integers")
        if self.rule != "ggml" and (self.rule == "minmax") != (self.offset is not None):
            refuse("rule 'minmax' and an offset belong together")
        if self.offset in ("zero_point", "float_zero") and not (integer and self.element.min == 0):
            refuse("a zero point needs an unsigned integer element (its codes are 0..2^b-1)")
        if self.offset == "minimum" and integer and self.element.bits > 8:
            refuse("offset 'minimum' takes codes of at most 8 bits (scale*code must be exact); use 'zero_point'")
        if self.scale is not None and self.element.max <= 0 and self.rule != "signed":
            refuse(f"its largest value is {self.element.max}: only rule 'signed' or an offset can use it")
        if self.reach is not None and not (self.rule in ("absmax", "rceil") and 0 < self.reach < math.inf):
            refuse(f"reach {self.reach!r} must be a positive number, under rule 'absmax' or 'rceil'")
        if self.alpha is not None:
            if not 0 <= self.alpha <= 1:
                refuse(f"alpha {self.alpha!r} must lie in [0, 1]")
            if (self.block, self.across, self.rule) != (FULL, 1, "absmax") or not isinstance(self.scale, str):
                refuse("alpha goes with block FULL, across 1, rule 'absmax' and a storage dtype of scales")

    @property
    def tensor(self) -> bool:
        """Whether one scale, or none, serves the whole core."""
        return self.block == FULL and self.across == FULL

    @property
    def local(self) -> bool:
        """Whether, under a given outer level, what a block stores depends on nothing but the block."""
        return self.alpha is None and not (isinstance(self.rule, Choice) and self.rule.per == "tensor")

    @property
    def candidates(self) -> tuple[Format, ...]:
        """The formats a block has to choose from: itself unless its rule is a `Choice`."""
        return self.rule.candidates if isinstance(self.rule, Choice) else (self,)

    def blocked(self, block: int, across: int = 1) -> Format:
        """The same format with other blocks.

        >>> from qjax.formats.spelling import parse
        >>> parse("nvfp4").blocked(16, 16).name
        'nvfp4_t16x16'
        """
        rule = self.rule
        if isinstance(rule, Choice):
            rule = replace(rule, candidates=tuple(c.blocked(block, across) for c in rule.candidates))
        return replace(self, block=block, across=across, rule=rule)

    @property
    def name(self) -> str:
        """The shortest spelling that `parse` reads back, or the description in words where there is none."""
        from qjax.formats.spelling import spell

        return spell(self)


@dataclass(frozen=True)
class Choice:
    """The candidates of a choice, what is compared, and who decides; see `formats.choice`."""

    candidates: tuple[Format, ...]
    by: By = "mse"
    per: Per = "block"

    def __post_init__(self) -> None:
        if self.by not in get_args(By):
            raise ValueError(f"a choice is made by one of {', '.join(get_args(By))}, not {self.by!r}")
        if self.per not in get_args(Per):
            raise ValueError(f"a choice is made per {' or per '.join(get_args(Per))}, not {self.per!r}")
