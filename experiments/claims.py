"""What the field claims and what came out here: `python -m experiments.claims [--markdown]`.

A claim is a pair of rows of a study in `configs/`, the better one first; or a quantity of the float model's activations
at two places, the larger first; or two quantities that grow together. Its verdict is read from that study's recorded
result (`python -m experiments.record`); a study that was not recorded, or whose claims have changed since, has none.
"""

from __future__ import annotations

import argparse
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from experiments import settings
from experiments.catalogue import ROOT, results

COLUMNS = ("study", "better or larger", "worse or smaller", "effect", "95 % interval", "matrices", "verdict")


class Study(NamedTuple):
    """A config with claims: `path` below the repository, `title` its docstring's first line, `claims` as judged."""

    path: str
    title: str
    claims: list[dict[str, Any]]


def studies(root: Path = ROOT) -> Iterator[Study]:
    """Every study whose config has claims, by path; a claim without a recorded verdict has "not run"."""
    recorded = results()
    for path in sorted((root / "configs").rglob("[a-z]*.py")):
        module = settings.module(str(path))
        config = settings.check(module.get_config())
        judged = {(c["better"], c["worse"]): c for c in recorded.get(config["study"], {}).get("claims", ())}
        claims = [
            judged.get((better, worse), {"better": better, "worse": worse, "verdict": "not run"})
            for better, worse in settings.claimed(config)
        ]
        if claims:
            title = (module.__doc__ or "").strip().splitlines()[0]
            yield Study(path.relative_to(root).as_posix(), title, claims)


def line(study: Study, claim: dict[str, Any]) -> tuple[str, ...]:
    """A claim's row under `COLUMNS`.

    The effect is below zero where the claim holds: a log ratio of perplexities, or of the quantity at both places, or
    minus Spearman's rank correlation. "matrices" is the share of matrices, over all replicates, whose output error is
    smaller in the better row; of two places, the share of layers.

    >>> line(Study("configs/a.py", "", []), {"better": "x", "worse": "y", "verdict": "not run"})
    ('a', 'x', 'y', '', '', '', 'not run')
    """
    numbers = ("", "", "")
    if "mean" in claim:
        wins, losses = (sum(signs[side] for signs in claim["matrices"]) for side in ("wins", "losses"))
        share = f"{100 * wins / (wins + losses):.0f} %" if wins + losses else ""
        numbers = (f"{claim['mean']:+.4f}", f"{claim['low']:+.4f} to {claim['high']:+.4f}", share)
    return (Path(study.path).stem, claim["better"], claim["worse"], *numbers, claim["verdict"])


def markdown() -> str:
    """All studies as one page."""
    parts = ["# Claims", "", *(__doc__ or "").split("\n\n", 1)[1].splitlines(), ""]
    for study in studies():
        head = COLUMNS[1:]
        rows = [line(study, claim)[1:] for claim in study.claims]
        parts += [f"## {study.title.rstrip('.')}", "", f"`{study.path}`", ""]
        parts += ["| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)] + [""]
    return "\n".join(parts)


def main() -> None:
    """Print one line a claim, or the page."""
    parser = argparse.ArgumentParser(prog="python -m experiments.claims", description="Claims and their verdicts.")
    parser.add_argument("--markdown", action="store_true", help="as a page with a table for each study")
    args = parser.parse_args()
    if hasattr(signal, "SIGPIPE"):  # a reader such as `head` may leave early
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    if args.markdown:
        print(markdown())
        return
    rows = [line(study, claim) for study in studies() for claim in study.claims]
    widths = [max(map(len, column)) for column in zip(COLUMNS, *rows, strict=True)]
    for row in (COLUMNS, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    counts = {verdict: sum(row[-1] == verdict for row in rows) for verdict in sorted({row[-1] for row in rows})}
    print(f"\n{len(rows)} claims: " + ", ".join(f"{count} {verdict}" for verdict, count in counts.items()))


if __name__ == "__main__":
    main()
