"""The page: facts and pictures of every run put into one template; style and script are inside."""

from __future__ import annotations

import json
from typing import Any

from experiments import judging
from experiments.report import facts, pictures, verdicts
from experiments.report.load import Run
from experiments.report.template import fill


def render(runs: list[Run]) -> str:
    """HTML of one page about these runs; refers to nothing outside itself."""
    return fill("page.html", studies=[study(run) for run in runs])


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
        "claims": [c | {"sentence": judging.sentence(c)} for c in run.claims],
        "bits": pictures.perplexity_against_bits(records),
        "forest": verdicts.claims(run.claims),
        "relations": verdicts.relations(facts.related(run)),
        "layers": pictures.error_by_layer(reports),
        "matrices": pictures.error_of_each_matrix(reports),
        "weights": pictures.weight_outliers(run.outliers),
        "inputs": pictures.input_outliers(run.outliers),
        "moved": pictures.outliers_by_layer(facts.input_ratios(run)),
        "samples": facts.samples(run),
        "leaves": reports,
        "times": facts.times(run),
        "provenance": run.provenance,
        "config": json.dumps(run.config, indent=2),
    }
