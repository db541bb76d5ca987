"""The page of formats in numbers: one sortable table, two pictures, where every number comes from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes

from experiments.report import pictures
from experiments.report.template import fill

COLOURS = {"Int": "#3f7fe0", "Float": "#e0812a", "Table": "#1f9e89"}
WORDS = {"Int": "integers", "Float": "minifloats", "Table": "tables of values", "OneOf": "choices"}
WORDS |= {"Fixed": "fixed point", "Posit": "posits", "ggml": "block types of ggml"}
PER_BIT = 20 * math.log10(2)
"""Decibels a bit: no code of R bits a number has more than this times R on Gaussian numbers (Shannon 1959)."""

PICTURED = 9
"""Bits up to which the pictures go: the few of 16 would squeeze all others into half of it."""


def render(found: dict[str, Any]) -> str:
    """HTML of the page about the numbers of `experiments.formats_table`; refers to nothing outside itself."""
    kinds = list(dict.fromkeys(row["kind"] for row in found["rows"]))
    rows = [
        row | {"picture": levels(row["values"], colour(row["kind"], kinds)), "short": shortfall(row)}
        for row in found["rows"]
    ]
    return fill(
        "format_table.html",
        rows=rows,
        found=found,
        per_bit=PER_BIT,
        pictured=PICTURED,
        gaussian=plane(found["rows"], "gaussian", "signal over noise on Gaussian numbers, dB", bound=True),
        model=plane(found["rows"], "model", "signal over noise on the model's weights, dB", bound=False),
    )


def colour(kind: str, kinds: Sequence[str]) -> str:
    """A colour for every kind of element, known or not."""
    rest = [k for k in kinds if k not in COLOURS]
    return COLOURS.get(kind) or pictures.SPARE[rest.index(kind) % len(pictures.SPARE)]


def shortfall(row: dict[str, Any]) -> float | None:
    """Decibels below what any code of as many bits could reach on Gaussian numbers."""
    reached = row["sqnr"]["gaussian"]
    return None if reached is None else PER_BIT * row["bits"] - reached


def levels(values: Sequence[float] | None, tint: str, width: int = 220, height: int = 20) -> str:
    """The levels as an inline SVG: one line each on a linear axis that the largest magnitude fills, zero longer."""
    if values is None:
        return ""
    top = max(abs(v) for v in values)
    thick = min(1.6, max(0.35, 0.45 * width / len(values)))
    lines = "".join(f"M{width / 2 + v / top * (width / 2 - 2):.2f} 4V{height - 4}" for v in values)
    return (
        f'<svg class="levels" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img">'
        f'<path d="M2 {height / 2}H{width - 2}M{width / 2} 0V{height}" stroke="var(--faint)" fill="none"/>'
        f'<path d="{lines}" stroke="{tint}" stroke-width="{thick:.2f}" fill="none"/></svg>'
    )


def plane(rows: Sequence[dict[str, Any]], source: str, label: str, bound: bool) -> str:
    """Bits a weight against signal over noise, one dot a format; with the bound, the line no code passes.

    Named are the formats that no other one beats with as few bits: a hundred names would hide each other.
    """
    shown = [row for row in rows if row["sqnr"].get(source) is not None and row["bits"] <= PICTURED]
    if not shown:
        return ""
    with mpl.rc_context(pictures.STYLE):
        fig, axes = pictures.figure(10.2, 5.4)
        ax: Axes = axes[0, 0]
        kinds = list(dict.fromkeys(row["kind"] for row in rows))
        bits, reached = [row["bits"] for row in shown], [row["sqnr"][source] for row in shown]
        low, high = min(bits) - 0.3, max(bits) + 0.9
        ax.set_xlim(low, high)
        ax.set_ylim(min(reached) - 2, max(reached) + 3)
        for kind in kinds:
            mine = [row for row in shown if row["kind"] == kind]
            ax.scatter([row["bits"] for row in mine], [row["sqnr"][source] for row in mine], s=34, linewidths=0,
                       color=colour(kind, kinds), label=WORDS.get(kind, kind), zorder=3)  # fmt: skip
        if bound:
            ax.plot([low, high], [PER_BIT * low, PER_BIT * high], color=pictures.INK, lw=1, ls=(0, (4, 3)),
                    label="6.02 dB a bit: the bound")  # fmt: skip
        ax.set_xlabel("bits a weight, scales included")
        ax.set_ylabel(label)
        ax.legend(loc="upper left", frameon=False, handletextpad=0.2)
        points = list(zip(bits, reached, [row["name"] for row in shown], strict=True))
        best = [p for p in points if not any(b <= p[0] and r > p[1] for b, r, _ in points)]
        pictures.place_labels(ax, fig, best, [], list(zip(bits, reached, strict=True)))
        return pictures.svg(fig)
