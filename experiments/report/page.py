"""The page: facts and pictures of every run put into one template; style and script are inside."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jinja2

from experiments.report import facts, pictures
from experiments.report.load import Run

HERE = Path(__file__).resolve().parent


def render(runs: list[Run]) -> str:
    """HTML of one page about these runs; refers to nothing outside itself."""
    env = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    env.filters["percent"] = lambda value, digits=1: f"{100 * value:.{digits}f} %"
    parts = {name: (HERE / name).read_text(encoding="utf-8") for name in ("style.css", "script.js")}
    return env.get_template("page.html").render(
        studies=[study(run) for run in runs], style=parts["style.css"], script=parts["script.js"]
    )


def study(run: Run) -> dict[str, Any]:
    """Everything the template says about one run."""
    records = facts.summary(run)
    reports = facts.leaves(run)
    title, _, about = run.about.strip().partition("\n")
    worst = max((r["cost"] for r in records if r["cost"] is not None), default=0.0)
    methods = [r["method"] for r in records if r["method"] != "float"]
    return {
        "id": f"{run.study}-{run.folder.name}",
        "study": run.study,
        "title": title.rstrip(".") or run.study,
        "about": [part.strip("\n") for part in about.split("\n\n") if part.strip()],
        "folder": f"{run.study}/{run.folder.name}",
        "tiles": facts.headlines(records),
        "records": [r | {"share": (r["cost"] or 0.0) / worst if worst > 0 else 0.0} for r in records],
        "colours": {m: pictures.colour(m, methods) for m in dict.fromkeys(methods)},
        "replicates": run.provenance["replicates"],
        "claims": run.claims,
        "bits": pictures.perplexity_against_bits(records),
        "forest": pictures.claims(run.claims),
        "layers": pictures.error_by_layer(reports),
        "matrices": pictures.error_of_each_matrix(reports),
        "weights": pictures.weight_outliers(run.outliers),
        "inputs": pictures.input_outliers(run.outliers),
        "samples": facts.samples(run),
        "leaves": reports,
        "times": facts.times(run),
        "provenance": run.provenance,
        "config": json.dumps(run.config, indent=2),
    }
