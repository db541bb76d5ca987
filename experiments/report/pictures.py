"""The plots of a report page, each an inline SVG whose lines and letters take the page's own colours."""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.colors
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from experiments.report.facts import layer_and_role

# Drawn in these two, then replaced by CSS: the picture follows the page into the dark.
INK, FAINT = "#010203", "#040506"
COLOURS = {"rtn": "#e0812a", "gptq": "#3f7fe0", "w8a8": "#1f9e89", "smoothquant": "#9a63d8", "lqer": "#d8487f"}
SPARE = ("#7a9a01", "#c2453c", "#5b7083", "#b58900", "#0095b3")
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "qjax",
    "font.family": "sans-serif",
    "font.size": 10,
    "text.color": INK,
    "axes.labelcolor": INK,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": FAINT,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.6,
    "xtick.color": INK,
    "ytick.color": INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "ytick.minor.size": 0,
    "figure.facecolor": "none",
    "axes.facecolor": "none",
}


def colour(method: str, methods: Sequence[str]) -> str:
    """A method's colour, the same in every picture of a page."""
    rest = [m for m in dict.fromkeys(methods) if m not in COLOURS]
    return COLOURS.get(method) or SPARE[rest.index(method) % len(SPARE)]


def svg(figure: Figure) -> str:
    """The figure as an SVG element without header, metadata or fixed size."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None}, transparent=True)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.S)
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = text.replace(INK, "currentColor").replace(FAINT, "var(--faint)")
    return re.sub(r"font-family: [^;\"]*; ?", "", text)


def figure(width: float, height: float, rows: int = 1, columns: int = 1, **kwargs: Any) -> tuple[Figure, np.ndarray]:
    """A figure in the page's style and its axes as a [rows, columns] array."""
    with mpl.rc_context(STYLE):
        fig = Figure(figsize=(width, height), layout="constrained")
        return fig, fig.subplots(rows, columns, squeeze=False, **kwargs)


def perplexity_against_bits(records: Sequence[dict[str, Any]]) -> str:
    """Every row as a point: bits a weight against perplexity (log), the float model as a line."""
    rows = [r for r in records if r["method"] != "float"]
    if not rows:
        return ""
    with mpl.rc_context(STYLE):
        fig, axes = figure(10.2, 4.4)
        ax: Axes = axes[0, 0]
        methods = [r["method"] for r in rows]
        ax.set_yscale("log")
        ax.set_xlabel("bits a weight, scales included")
        ax.set_ylabel("perplexity")
        bits = [r["bpw"] for r in rows]
        ax.set_xlim(min(bits) - 0.5, max(bits) + 1.2)
        top = max(r["high"] for r in rows)
        floor = min([r["low"] for r in rows] + [r["perplexity"] for r in records])
        ax.set_ylim(floor / 1.06, top * 1.12)
        ax.yaxis.set_major_locator(LogLocator(10, subs=(1, 1.5, 2, 3, 4, 5, 7)))
        ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:g}"))
        ax.yaxis.set_minor_formatter(NullFormatter())
        for fmt in dict.fromkeys(r["format"] for r in rows):  # what a better method gains at equal bits
            line = sorted((r for r in rows if r["format"] == fmt), key=lambda r: r["perplexity"])
            ax.plot([r["bpw"] for r in line], [r["perplexity"] for r in line], color=FAINT, lw=1.2, zorder=1)
        for method in dict.fromkeys(methods):
            mine = [r for r in rows if r["method"] == method]
            x, y = [r["bpw"] for r in mine], [r["perplexity"] for r in mine]
            c = colour(method, methods)
            if any(r["seeds"] > 1 for r in mine):
                spread = [[r["perplexity"] - r["low"] for r in mine], [r["high"] - r["perplexity"] for r in mine]]
                ax.errorbar(x, y, yerr=spread, fmt="none", ecolor=c, elinewidth=1.2, alpha=0.7)
            ax.scatter(x, y, s=52, color=c, label=method, zorder=3, linewidths=0)
        for r in records:
            if r["method"] == "float":
                ax.axhline(r["perplexity"], color=INK, lw=1, ls=(0, (4, 3)))
                ax.annotate(f"float {r['perplexity']:.2f}", (1, r["perplexity"]), xycoords=("axes fraction", "data"),
                            xytext=(0, 4), textcoords="offset points", ha="right", fontsize=9)  # fmt: skip
        ax.legend(loc="upper right", frameon=False, handletextpad=0.2)
        floats = [r["perplexity"] for r in records if r["method"] == "float"]
        place_labels(ax, fig, [(r["bpw"], r["perplexity"], r["name"].split(" ", 1)[-1]) for r in rows], floats)
        return svg(fig)


NEAR = [(8, -3, "left"), (-8, -3, "right"), (6, 6, "left"), (-6, 6, "right"), (6, -13, "left"), (-6, -13, "right")]
PLACES = [*NEAR, *((side * dx, dy, ha) for far in (22, 38, 56, 76) for dy in (far, -far) for dx in (6, 22, 44)
                   for side, ha in ((1, "left"), (-1, "right")))]  # fmt: skip


def place_labels(
    ax: Axes,
    fig: Figure,
    points: Sequence[tuple[float, float, str]],
    lines: Sequence[float],
    dots: Sequence[tuple[float, float]] = (),
) -> None:
    """Write each (x, y, text) in the first free place around it, clear of points, lines, `dots` and earlier texts.

    Where the near places are taken, further off with a line to its point; a text that fits nowhere is left out.
    """
    fig.draw_without_rendering()
    scale = 72 / fig.dpi
    inside = ax.get_window_extent()
    edges, floor, ceiling = (inside.x0 * scale, inside.x1 * scale), inside.y0 * scale, inside.y1 * scale
    spots = [tuple(ax.transData.transform((x, y)) * scale) for x, y, _ in points]
    others = [tuple(ax.transData.transform(dot) * scale) for dot in dots]
    boxes = [(px - 4, py - 4, px + 4, py + 4) for px, py in [*spots, *others]]
    boxes += [(edges[0], y - 2, edges[1], y + 2) for _, y in (ax.transData.transform((1, v)) * scale for v in lines)]
    for (px, py), (x, y, text) in sorted(zip(spots, points, strict=True), key=lambda item: -item[0][1]):
        wide = 5.0 * len(text)
        for dx, dy, ha in PLACES:
            left = px + dx - (wide if ha == "right" else 0)
            box = (left, py + dy - 1, left + wide, py + dy + 9)
            fits = edges[0] < box[0] and box[2] < edges[1] and floor < box[1] and box[3] < ceiling
            if fits and not any(box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in boxes):
                boxes.append(box)
                line = {"arrowstyle": "-", "color": FAINT, "lw": 0.7} if (dx, dy, ha) not in NEAR else None
                ax.annotate(text, (x, y), xytext=(dx, dy), textcoords="offset points", ha=ha, fontsize=8.5,
                            arrowprops=line)  # fmt: skip
                break


def error_by_layer(reports: Sequence[dict[str, Any]]) -> str:
    """Relative output error, root mean square over a layer's matrices; one panel a format, one line a method."""
    series: dict[str, list[tuple[str, np.ndarray, np.ndarray]]] = {}
    for report in reports:
        by_layer: dict[int, list[float]] = {}
        for leaf in report["rows"]:
            if (layer := layer_and_role(leaf["path"])[0]) >= 0 and leaf["output_error"] is not None:
                by_layer.setdefault(layer, []).append(leaf["output_error"])
        if by_layer:
            x = np.array(sorted(by_layer))
            y = np.array([np.sqrt(np.mean(np.square(by_layer[i]))) for i in x])
            series.setdefault(report["format"], []).append((report["name"], x, y))
    if not series:
        return ""
    methods = [report["name"].split(" ")[0] for report in reports]
    columns = min(len(series), 3)
    rows = -(-len(series) // columns)
    with mpl.rc_context(STYLE):
        fig, axes = figure(10.2, 0.6 + 2.1 * rows, rows, columns, sharex=True, sharey=True)
        for ax, (fmt, lines) in zip(axes.flat, series.items(), strict=False):
            strokes = _strokes([name for name, _, _ in lines], methods)
            for (name, x, y), stroke in zip(lines, strokes, strict=True):
                ax.plot(x, y, lw=1.8, label=_short(name, fmt), **stroke)
            ax.set_title(fmt)
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(10, subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:g} %"))
            ax.yaxis.set_minor_formatter(NullFormatter())
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
            ax.legend(frameon=False, fontsize=8, handlelength=1.4)
        for ax in axes.flat[len(series) :]:
            ax.set_axis_off()
        for ax in axes[-1]:
            ax.set_xlabel("layer")
        for ax in axes[:, 0]:
            ax.set_ylabel("output error")
        return svg(fig)


def _strokes(names: Sequence[str], methods: Sequence[str]) -> list[dict[str, Any]]:
    """A line's colour, its method's, and its dashes, which tell rows of one method apart; float is ink."""
    seen: dict[str, int] = {}
    strokes = []
    for method in (name.split(" ")[0] for name in names):
        seen[method] = seen.get(method, -1) + 1
        tint = INK if method == "float" else colour(method, [m for m in methods if m != "float"])
        strokes.append({"color": tint, "ls": ("-", "--", ":")[seen[method] % 3]})
    return strokes


def _short(name: str, fmt: str) -> str:
    return " ".join(part for part in name.split(" ") if part != fmt)


def error_of_each_matrix(reports: Sequence[dict[str, Any]]) -> str:
    """Output error of every matrix, layer by role, one panel a row of the table; one colour scale for all."""
    panels = []
    for report in reports:
        table = _by_layer_and_role(
            {leaf["path"]: leaf["output_error"] for leaf in report["rows"] if leaf["output_error"]}
        )
        if table is not None:
            panels.append((report["name"], *table))
    if not panels:
        return ""
    low = max(min(float(np.nanmin(values)) for _, _, values in panels), 1e-4)
    high = max(float(np.nanmax(values)) for _, _, values in panels)
    columns = min(len(panels), 2)
    rows = -(-len(panels) // columns)
    with mpl.rc_context(STYLE):
        fig, axes = figure(10.2, 0.5 + 1.62 * rows, rows, columns, sharex=True, sharey=True)
        image = None
        for ax, (name, roles, values) in zip(axes.flat, panels, strict=False):
            image = _heat(ax, np.maximum(values, low), roles, (low, high))
            ax.set_title(name)
        for ax in axes.flat[len(panels) :]:
            ax.set_axis_off()
        for ax in axes[-1]:
            ax.set_xlabel("layer")
        _scale(fig, image, axes, "output error", lambda v, _: f"{100 * v:g} %")
        return svg(fig)


def weight_outliers(outliers: dict[str, np.ndarray]) -> str:
    """Largest |w| over the root mean square of its matrix, layer by role."""
    ratio = {
        path.removeprefix("weight/"): float(values[0] / values[1])
        for path, values in outliers.items()
        if path.startswith("weight/") and values[1] > 0
    }
    if (table := _by_layer_and_role(ratio)) is None:
        return ""
    roles, values = table
    with mpl.rc_context(STYLE):
        fig, axes = figure(10.2, 2.5)
        image = _heat(axes[0, 0], values, roles, (float(np.nanmin(values)), float(np.nanmax(values))))
        axes[0, 0].set_xlabel("layer")
        _scale(fig, image, axes, "max |w| / rms", lambda v, _: f"{v:g}")
        return svg(fig)


def input_outliers(outliers: dict[str, np.ndarray], bins: int = 288) -> str:
    """Largest |x| of each input channel, layer by channel, one panel for each distinct input of a layer."""
    tables: dict[str, dict[int, np.ndarray]] = {}
    for path, values in outliers.items():
        layer, role = layer_and_role(path)
        if path.startswith("input/") and layer >= 0:
            tables.setdefault(role, {})[layer] = np.asarray(values, np.float64).reshape(-1, values.shape[-1]).max(0)
    panels: list[tuple[list[str], np.ndarray]] = []
    for role, layers in tables.items():
        if len({v.shape for v in layers.values()}) > 1:
            continue
        table = np.stack([layers[i] for i in sorted(layers)])
        for names, known in panels:
            if known.shape == table.shape and np.array_equal(known, table):
                names.append(role)
                break
        else:
            panels.append(([role], table))
    if not panels:
        return ""
    high = max(float(t.max()) for _, t in panels)
    low = max(min(float(np.median(t)) for _, t in panels) / 10, high / 1e6, 1e-6)
    with mpl.rc_context(STYLE):
        fig, axes = figure(10.2, 0.4 + 2.15 * -(-len(panels) // 2), -(-len(panels) // 2), 2 if len(panels) > 1 else 1)
        image = None
        for ax, (names, table) in zip(axes.flat, panels, strict=False):
            layer, channel = np.unravel_index(int(table.argmax()), table.shape)
            # Bins keep the largest of their channels: a lone outlier must not be averaged away.
            step = -(-table.shape[1] // bins)
            padded = np.pad(table, ((0, 0), (0, -table.shape[1] % step)))
            binned = padded.reshape(len(table), -1, step).max(-1)
            image = ax.imshow(
                np.maximum(binned, low), aspect="auto", origin="lower", interpolation="nearest", cmap="magma",
                norm=matplotlib.colors.LogNorm(low, high), extent=(0, table.shape[1], -0.5, len(table) - 0.5),
            )  # fmt: skip
            ax.grid(False)
            ax.set_title("input of " + ", ".join(names), fontsize=9)
            ax.text(
                1,
                1.03,
                f"max {table.max():,.{0 if table.max() >= 100 else 1}f}: channel {channel}, layer {layer}",
                transform=ax.transAxes,
                ha="right",
                fontsize=8,
            )
            ax.set_ylabel("layer")
            ax.set_xlabel("channel")
            ax.yaxis.set_major_locator(MaxNLocator(5, integer=True))
        for ax in axes.flat[len(panels) :]:
            ax.set_axis_off()
        _scale(fig, image, axes, "max |x|", lambda v, _: f"{v:g}")
        return svg(fig)


def outliers_by_layer(rows: Sequence[dict[str, Any]]) -> str:
    """Largest over median |x| that meets each matrix; one panel for each distinct input of a layer, one line a row."""
    tables = {row["name"]: table for row in rows if (table := _by_layer_and_role(row["ratios"])) is not None}
    if not tables:
        return ""
    panels: dict[str, list[tuple[str, np.ndarray]]] = {}
    for name, (roles, values) in tables.items():
        for role, line in zip(roles, values, strict=True):
            panels.setdefault(role, []).append((name, line))
    merged: list[tuple[list[str], list[tuple[str, np.ndarray]]]] = []
    for role, lines in panels.items():  # matrices that read the same value share a panel
        twin = next((names for names, known in merged if _equal(known, lines)), None)
        if twin is None:
            merged.append(([role], lines))
        else:
            twin.append(role)
    methods = [name.split(" ")[0] for name in tables]
    columns = min(len(merged), 2)
    height = -(-len(merged) // columns)
    with mpl.rc_context(STYLE):
        fig, axes = figure(10.2, 0.8 + 2.3 * height, height, columns, sharex=True)
        for ax, (names, lines) in zip(axes.flat, merged, strict=False):
            for (name, line), stroke in zip(lines, _strokes([name for name, _ in lines], methods), strict=True):
                ax.plot(line, lw=1.6, label=name, **stroke)
            ax.set_title("input of " + ", ".join(names), fontsize=9)
            ax.set_yscale("log")
            ax.yaxis.set_major_locator(LogLocator(10))
            ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f"{v:,.0f}"))
            ax.yaxis.set_minor_formatter(NullFormatter())
            ax.xaxis.set_major_locator(MaxNLocator(6, integer=True))
        for ax in axes.flat[len(merged) :]:
            ax.set_axis_off()
        for ax in axes[-1]:
            ax.set_xlabel("layer")
        for ax in axes[:, 0]:
            ax.set_ylabel("largest / median")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        fig.legend(handles, labels, loc="outside lower center", ncols=min(len(labels), 4), frameon=False, fontsize=8)
        return svg(fig)


def _equal(a: Sequence[tuple[str, np.ndarray]], b: Sequence[tuple[str, np.ndarray]]) -> bool:
    return [n for n, _ in a] == [n for n, _ in b] and all(
        np.array_equal(x, y, equal_nan=True) for (_, x), (_, y) in zip(a, b, strict=True)
    )


def _by_layer_and_role(values: dict[str, float]) -> tuple[list[str], np.ndarray] | None:
    places = {path: layer_and_role(path) for path in values}
    layers = sorted({layer for layer, _ in places.values() if layer >= 0})
    if not layers:
        return None
    roles = list(dict.fromkeys(role for layer, role in places.values() if layer >= 0))
    table = np.full((len(roles), len(layers)), np.nan)
    for path, value in values.items():
        layer, role = places[path]
        if layer >= 0:
            table[roles.index(role), layers.index(layer)] = value
    return roles, table


def _heat(ax: Axes, values: np.ndarray, roles: Sequence[str], limits: tuple[float, float]) -> Any:
    norm = matplotlib.colors.LogNorm(*limits) if limits[0] > 0 and limits[1] > limits[0] else None
    image = ax.imshow(values, aspect="auto", interpolation="nearest", cmap="viridis", norm=norm)
    ax.grid(False)
    ax.set_yticks(range(len(roles)), roles, fontsize=7.5)
    ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    for spine in ax.spines.values():
        spine.set_visible(False)
    return image


def _scale(fig: Figure, image: Any, axes: np.ndarray, label: str, form: Any) -> None:
    bar = fig.colorbar(image, ax=axes.ravel().tolist(), pad=0.015, aspect=28, format=FuncFormatter(form))
    if isinstance(image.norm, matplotlib.colors.LogNorm):
        low, high = image.get_clim()
        wide = high > 100 * low
        bar.set_ticks(LogLocator(10, subs=(1,) if wide else (1, 2, 3, 5, 7)))
    bar.outline.set_visible(False)
    bar.ax.yaxis.set_minor_formatter(NullFormatter())
    bar.set_label(label, fontsize=8.5)
    bar.ax.tick_params(labelsize=8)
