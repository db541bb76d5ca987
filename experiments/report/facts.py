"""What the page says about a run: rows over replicates, headline figures, per-leaf tables, times."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np

from experiments import judging
from experiments.report.load import Run

NUMBERS = ("bpw", "bpw_model", "bytes", "perplexity", "kl_mean", "kl_p99", "top1_flip")


def layer_and_role(path: str) -> tuple[int, str]:
    """The layer a leaf belongs to and its place in it; leaves outside layers have layer -1.

    >>> layer_and_role("layers/3/attn/q"), layer_and_role("head")
    ((3, 'attn/q'), (-1, 'head'))
    """
    found = re.search(r"(?:^|/)[^/]*?[/\[](\d+)\]?/(.+)$", path)
    return (int(found[1]), found[2]) if found else (-1, path)


def summary(run: Run) -> list[dict[str, Any]]:
    """One record a row of the study: means over seeds, the spread of the perplexity, and its cost against float."""
    names = list(dict.fromkeys(row["name"] for row in run.rows))
    base = {row["seed"]: row["perplexity"] for row in run.rows if row["name"] == "float"}
    out = []
    for name in names:
        rows = [row for row in run.rows if row["name"] == name]
        record: dict[str, Any] = {key: float(np.mean([row[key] for row in rows])) for key in NUMBERS}
        costs = [math.log(row["perplexity"] / base[row["seed"]]) for row in rows if row["seed"] in base]
        record |= {
            "name": name,
            "method": name.split(" ")[0],
            "recipe": rows[0]["recipe"],
            "format": rows[0]["format"],
            "seeds": len(rows),
            "low": min(row["perplexity"] for row in rows),
            "high": max(row["perplexity"] for row in rows),
            "cost": float(np.mean(costs)) if costs else None,
        }
        out.append(record)
    return out


def headlines(records: list[dict[str, Any]]) -> list[dict[str, str]]:
    """Three or four figures to read first."""
    quantized = [r for r in records if r["method"] != "float"]
    tiles = [
        {
            "value": f"{r['perplexity']:.2f}",
            "label": "perplexity of the float model",
            "note": f"{r['bytes'] / 1e6:.0f} MB on disk",
        }
        for r in records
        if r["method"] == "float"
    ]
    for limit, label in ((3.75, "best below 3.75 bits"), (4.75, "best at 4 to 4.75 bits"), (9.0, "best at 8 bits")):
        fitting = [r for r in quantized if limit - 1.5 < r["bpw"] <= limit and r["cost"] is not None]
        if fitting:
            best = min(fitting, key=lambda r: r["cost"])
            note = f"{best['name']}, {best['bpw']:.2f} bits a weight"
            tiles.append({"value": f"{100 * math.expm1(best['cost']):+.1f} %", "label": label, "note": note})
    return tiles


def leaves(run: Run) -> list[dict[str, Any]]:
    """Per-leaf reports of the first replicate: [{name, format, rows: [{path, ...}]}] in table order."""
    first = [entry for (seed, _), entry in run.entries.items() if seed == 0]
    order = list(dict.fromkeys(row["name"] for row in run.rows))
    found = [
        {"name": e["metrics"]["name"], "format": e["metrics"]["format"], "rows": e["leaves"]}
        for e in first
        if e["leaves"]
    ]
    return sorted(found, key=lambda entry: order.index(entry["name"]))


def input_ratios(run: Run) -> list[dict[str, Any]]:
    """Largest over median |x| that meets each matrix, where rows have it: [{name, ratios by path}] in table order."""
    found = {name: e["inputs"] for (seed, name), e in run.entries.items() if seed == 0 and "inputs" in e}
    ratios = {
        name: {path: x["largest"] / x["median"] for path, x in matrices.items() if x["median"] > 0}
        for name, matrices in found.items()
    }
    order = dict.fromkeys(row["name"] for row in run.rows)
    return [{"name": name, "ratios": ratios[name]} for name in order if name in ratios]


def related(run: Run) -> list[dict[str, Any]]:
    """Of each relation of the config, its points in the first replicate: [{cause, effect, points: [(row, x, y)]}].

    x and y are lists, one number a matrix, or a single one where the effect is the row's own.
    """
    order = list(dict.fromkeys(row["name"] for row in run.rows if row["name"] != "float"))
    return [
        {
            "cause": cause,
            "effect": effect,
            "points": [(name, *judging.points(cause, effect, run.entries[0, name])) for name in order],
        }
        for cause, effect in run.config.get("relations", ())
        if order
    ]


def samples(run: Run) -> list[dict[str, Any]]:
    """Generated texts by prompt: [{prompt, answers: [{name, text}]}]."""
    prompts: dict[str, list[dict[str, str]]] = {}
    order = list(dict.fromkeys(row["name"] for row in run.rows))
    entries = sorted((e for e in run.entries.values()), key=lambda e: order.index(e["metrics"]["name"]))
    for entry in entries:
        for sample in entry["samples"]:
            prompts.setdefault(sample["prompt"], []).append({"name": entry["metrics"]["name"], "text": sample["text"]})
    return [{"prompt": prompt, "answers": answers} for prompt, answers in prompts.items()]


def times(run: Run) -> list[dict[str, Any]]:
    """Seconds by row and kind of work, summed over replicates and resumptions, and the process's peak memory."""
    table: dict[str, dict[str, float]] = {}
    for record in run.timing:
        if "what" in record:
            line = table.setdefault(record["row"], {"peak": 0.0})
            line[record["what"]] = line.get(record["what"], 0.0) + record["seconds"]
            line["peak"] = max(line["peak"], record["process_peak_mib"])
    return [
        {"name": name, "total": sum(v for k, v in line.items() if k != "peak"), **line} for name, line in table.items()
    ]
