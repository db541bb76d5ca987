"""A choice among formats: every block, or every tensor, takes the candidate that leaves the least error."""

from __future__ import annotations

from collections.abc import Sequence

from qjax.formats.format import By, Choice, Format, Per
from qjax.formats.one_of import OneOf


def choice(candidates: Sequence[Format | str], by: By = "mse", per: Per = "block") -> Format:
    """The format whose blocks each take one of `candidates` (catalogue A14, A15, A27-A29).

    by  : what is compared: "mse" the sum of squared errors, "mae" of absolute ones, "max" the largest one.
    per : each "block" decides for itself, or the "tensor" (each entry of its batch axes) for all its blocks.

    Candidates differ in their elements, all of one width, or only in how the scale follows from the range (four over
    six); blocks and the storage of scales are the same, and there is no offset. Ties go to the earlier candidate. Where
    elements differ, every block stores an index, log2(n) bits. A level above the scales is fitted to the largest scale
    that any candidate asks for. Ranges are estimated for each candidate separately.

    >>> choice(("int4_g64_narrow", "fp4_e2m1_g64")).name
    'int4_g64_narrow|fp4_e2m1_g64'

    Raises:
        ValueError: fewer than two candidates, or they differ in more than element, rule and reach, or one has
            levels of its own or is a block type of ggml.
    """
    formats = tuple(map(_format, candidates))
    if len(formats) < 2:
        raise ValueError(f"a choice takes at least two candidates, got {len(formats)}")
    if any(isinstance(c.rule, Choice) for c in formats):
        raise ValueError("a candidate of a choice cannot be a choice itself: list its candidates instead")
    for c in formats:
        if c.rule == "ggml" or c.levels is not None:
            raise ValueError(f"{c.name} cannot be a candidate of a choice: it chooses scales or levels by itself")
    first = formats[0]
    for field in ("block", "across", "scale", "offset", "alpha"):
        values = [getattr(c, field) for c in formats]
        if len(set(values)) > 1:
            shown = ", ".join(f"{c.name} has {getattr(v, 'name', v)}" for c, v in zip(formats, values, strict=True))
            raise ValueError(f"the candidates of a choice share their {field}, but {shown}")
    if first.offset is not None:
        raise ValueError(f"the candidates of a choice have no offset, but {first.name} has {first.offset!r}")
    elements = tuple(dict.fromkeys(c.element for c in formats))
    element = OneOf(tuple(c.element for c in formats)) if len(elements) > 1 else first.element
    return Format(element, first.block, first.across, first.scale, Choice(formats, by, per))


def _format(fmt: Format | str) -> Format:
    if isinstance(fmt, Format):
        return fmt
    from qjax.formats.spelling import as_format  # which knows the named choices

    return as_format(fmt)
