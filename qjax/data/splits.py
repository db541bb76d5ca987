"""Text is split once: 60 % to calibrate on, 20 % to choose on, 20 % to report on."""

from __future__ import annotations

from typing import NamedTuple

CALIBRATION = 0.6
DEVELOPMENT = 0.2


class Splits(NamedTuple):
    """Three disjoint pieces of one text, in the order they stand in it; joined they are the text again."""

    calibration: str
    development: str
    report: str


def split(text: str) -> Splits:
    r"""Cut a text at 60 % and 80 % of its characters, each cut moved to just after the next line end.

    The cut is in characters, not tokens, so that every tokenizer sees the same three pieces. Statistics are taken on
    `calibration`, recipes are chosen on `development`, and `report` is read once, for the number that is printed.
    A text with fewer than three lines raises ValueError.

    >>> split("a" * 5 + chr(10) + "b" + chr(10) + "c")
    Splits(calibration='aaaaa\n', development='b\n', report='c')
    """
    first = _line_end(text, int(len(text) * CALIBRATION))
    second = _line_end(text, max(first, int(len(text) * (CALIBRATION + DEVELOPMENT))))
    parts = Splits(text[:first], text[first:second], text[second:])
    if not all(parts):
        raise ValueError(f"a text of {len(text)} characters in {text.count(chr(10)) + 1} lines is too short to split")
    return parts


def _line_end(text: str, start: int) -> int:
    end = text.find("\n", max(start - 1, 0))
    return len(text) if end < 0 else end + 1
