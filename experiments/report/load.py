"""Finished runs on disk."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.store import read_json


class Run(NamedTuple):
    """Everything one run folder holds. `rows` are metrics.json's; `entries` maps (seed, name) to leaves and samples."""

    folder: Path
    about: str
    config: dict[str, Any]
    provenance: dict[str, Any]
    rows: list[dict[str, Any]]
    claims: list[dict[str, Any]]
    entries: dict[tuple[int, str], dict[str, Any]]
    outliers: dict[str, np.ndarray]
    timing: list[dict[str, Any]]

    @property
    def study(self) -> str:
        return self.config["study"]


def find(root: Path, everything: bool = False) -> list[Run]:
    """Finished runs below `root`, the newest of each study unless `everything`; none raises FileNotFoundError."""
    found = sorted(root.rglob("metrics.json"), key=lambda path: path.stat().st_mtime, reverse=True)
    if not found:
        raise FileNotFoundError(
            f"no metrics.json below {root}: run a study first (python -m experiments.run --config=...)"
        )
    runs = [load(path.parent) for path in found]
    if not everything:
        runs = list({run.study: run for run in reversed(runs)}.values())
    return sorted(runs, key=lambda run: (run.study != "quickstart", run.study))


def load(folder: Path) -> Run:
    """One run folder; timing, pictures and the description may be absent."""
    metrics = read_json(folder / "metrics.json")
    entries = [read_json(path) for path in sorted((folder / "rows").glob("*.json"))]
    about, outliers = folder / "about.txt", folder / "outliers.npz"
    return Run(
        folder=folder,
        about=about.read_text(encoding="utf-8") if about.exists() else "",
        config=read_json(folder / "config.json"),
        provenance=read_json(folder / "provenance.json"),
        rows=metrics["rows"],
        claims=metrics["claims"],
        entries={(e["metrics"]["seed"], e["metrics"]["name"]): e for e in entries},
        outliers=dict(np.load(outliers)) if outliers.exists() else {},
        timing=list(_lines(folder / "timing.jsonl")),
    )


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    if path.exists():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                yield json.loads(line)
            except json.JSONDecodeError:
                continue  # a line cut short by a kill; times are no result
