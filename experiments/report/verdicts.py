"""Pictures of what was claimed: effects with their intervals, and quantities that grow together."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from experiments.judging import sentence
from experiments.report.pictures import INK, STYLE, figure, svg


def claims(judged: Sequence[dict[str, Any]]) -> str:
    """Each claim's effects: replicates as dots, mean and 95 % interval as a bar; left of zero the claim holds."""
    shown = [c for c in judged if "mean" in c]
    if not shown:
        return ""
    tints = {"reproduced": "#1f9e89", "contradicted": "#c2453c", "undecided": "#8a8f98"}
    with mpl.rc_context(STYLE):
        fig, axes = figure(10.2, 0.7 + 0.42 * len(shown))
        ax = axes[0, 0]
        for i, c in enumerate(reversed(shown)):
            tint = tints[c["verdict"]]
            if c["low"] is not None:
                ax.plot([c["low"], c["high"]], [i, i], color=tint, lw=7, alpha=0.3, solid_capstyle="round")
            ax.scatter(c["log_ratios"], [i] * len(c["log_ratios"]), s=22, color=tint, linewidths=0, zorder=3)
            ax.scatter([c["mean"]], [i], s=90, marker="|", color=INK, zorder=4)
        ax.axvline(0, color=INK, lw=1)
        ax.set_yticks(range(len(shown)), [sentence(c) for c in reversed(shown)], fontsize=8.5)
        ax.set_ylim(-0.7, len(shown) - 0.3)
        ax.grid(axis="y", visible=False)
        ax.set_xlabel("effect (below zero: the claim holds)")
        return svg(fig)


def relations(found: Sequence[dict[str, Any]]) -> str:
    """Cause against effect, one panel a relation: a dot for each matrix of each row, or for each row."""
    if not found:
        return ""
    names = list(dict.fromkeys(name for relation in found for name, _, _ in relation["points"]))
    with mpl.rc_context(STYLE):
        fig, axes = figure(10.2, 0.6 + 3.0 * -(-len(found) // 2), -(-len(found) // 2), min(len(found), 2))
        for ax, relation in zip(axes.flat, found, strict=False):
            few = len(relation["points"]) <= len(names)
            for name, x, y in relation["points"]:
                tint = mpl.colormaps["viridis"](names.index(name) / max(len(names) - 1, 1) * 0.9)
                ax.scatter(
                    x,
                    y,
                    s=28 if few else 5,
                    color=tint,
                    alpha=1.0 if few else 0.5,
                    linewidths=0,
                    label=name,
                    rasterized=not few,
                )
            ax.set_yscale("log")
            ax.set_xscale("log" if relation["cause"] in ("crest", "kurtosis") else "linear")
            for axis in (ax.xaxis, ax.yaxis):
                if axis.get_scale() == "log":
                    axis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
                    axis.set_minor_formatter(NullFormatter())
                axis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
            ax.set_xlabel(relation["cause"])
            ax.set_ylabel(relation["effect"])
        for ax in axes.flat[len(found) :]:
            ax.set_axis_off()
        handles, labels = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 3), frameon=False, fontsize=8)
        return svg(fig)
