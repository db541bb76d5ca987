"""What of the field exists here: `python -m experiments.catalogue [--json] [--state=done]`.

The rows (id, family, name, class) stand in `catalogue.tsv`; nothing else about them is written down. What exists is
read from the tree:

- a *function* or *recipe* is code of qjax whose docstring says "catalogue E3";
- a *config* is a study whose docstring says so;
- a *check* is a line of `checks.tsv` (id, test) whose test exists: an oracle, brute force or an invariant;
- a *result* is a recorded run (`python -m experiments.record`) of such a config.

A row is done with all four, partial with some code or config, planned with none. Class OUT is out of scope.
"""

from __future__ import annotations

import argparse
import ast
import csv
import json
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
STATES = ("done", "partial", "planned", "out")
MENTION = re.compile(r"catalogue:?\s+((?:[A-X]\d+(?:-[A-X]?\d+)?(?:,\s+|\s+and\s+|\b))+)", re.IGNORECASE)


def mentions(text: str) -> set[str]:
    """IDs that a docstring names after the word catalogue.

    >>> sorted(mentions("Rounds (catalogue E1, D1). Catalogue A10-A12; the T4 is a GPU"))
    ['A10', 'A11', 'A12', 'D1', 'E1']
    """
    found = set()
    for group in MENTION.findall(text):
        for first, last in re.findall(r"([A-X]\d+)(?:-[A-X]?(\d+))?", group):
            number = int(first[1:])
            found |= {f"{first[0]}{n}" for n in range(number, int(last or number) + 1)}
    return found


def rows() -> list[dict[str, str]]:
    """The catalogue's rows: id, family, name, class."""
    with (HERE / "catalogue.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))


def docstrings(folder: Path) -> Iterator[tuple[str, str]]:
    """(where, docstring) of every module, class and function below a folder; where is "qjax/solvers/gptq.py:gptq"."""
    for path in sorted(folder.rglob("*.py")):
        place = path.relative_to(ROOT).as_posix()
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
                yield (place if isinstance(node, ast.Module) else f"{place}:{node.name}"), text


def found(folder: Path) -> dict[str, list[str]]:
    """ID -> places below a folder whose docstring names it."""
    places: dict[str, list[str]] = {}
    for where, text in docstrings(folder):
        for name in mentions(text):
            places.setdefault(name, []).append(where)
    return places


def checks() -> dict[str, list[str]]:
    """ID -> tests named in checks.tsv; a test that does not exist raises ValueError, so the table cannot go stale."""
    known: dict[str, list[str]] = {}
    with (HERE / "checks.tsv").open(encoding="utf-8", newline="") as file:
        for line in csv.DictReader(file, delimiter="\t"):
            path, _, name = line["test"].partition("::")
            source = ROOT / path
            names = (
                {n.name for n in ast.walk(ast.parse(source.read_text())) if isinstance(n, ast.FunctionDef)}
                if source.exists()
                else set()
            )
            if name not in names:
                raise ValueError(f"checks.tsv: {line['id']} names {line['test']}, which does not exist")
            known.setdefault(line["id"], []).append(line["test"])
    return known


def results() -> dict[str, dict[str, Any]]:
    """Study -> its recorded rows and claims; of a study in parts, as "shootout.3" is one, those of all of them."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((HERE / "results").glob("*.json")):
        part = json.loads(path.read_text(encoding="utf-8"))
        study = found.setdefault(path.stem.split(".")[0], {"rows": [], "claims": []})
        for field, entries in study.items():
            entries.extend(part[field])
    return found


def catalogue() -> list[dict[str, Any]]:
    """Every row with what exists of it: id, name, family, class, state, recipe, function, config, check, result."""
    code, studies, tested, recorded = found(ROOT / "qjax"), found(ROOT / "configs"), checks(), results()
    table = []
    for row in rows():
        name = row["id"]
        places = code.get(name, [])
        recipes = [place for place in places if place.startswith("qjax/recipes/") and ":" in place]
        configs = [place.split(":")[0] for place in studies.get(name, [])]
        outcome = [summary(study, recorded[study], recipes) for c in configs if (study := Path(c).stem) in recorded]
        has = (bool(places), bool(configs), bool(tested.get(name)), bool(outcome))
        state = "out" if row["class"] == "OUT" else "done" if all(has) else "partial" if has[0] or has[1] else "planned"
        table.append({
            "id": name, "name": row["name"], "family": row["family"], "class": row["class"], "state": state,
            "recipe": recipes, "function": [p for p in places if p not in recipes], "config": configs,
            "check": tested.get(name, []), "result": outcome,
        })  # fmt: skip
    return table


def summary(study: str, recorded: dict[str, Any], recipes: list[str]) -> str:
    """One line of a recorded result: the best perplexity of this recipe beside the float model's."""
    methods = {place.split(":")[1] for place in recipes}
    base = min((r["perplexity"] for r in recorded["rows"] if r["name"] == "float"), default=None)
    mine = [r for r in recorded["rows"] if r["recipe"].split("(")[0] in methods]
    if not mine or base is None:
        return f"{study}: {len(recorded['rows'])} rows"
    best = min(mine, key=lambda r: r["perplexity"])
    return f"{study}: {best['name']} perplexity {best['perplexity']:.2f} at {best['bpw']:.2f} bits, float {base:.2f}"


def main() -> None:
    """Print the catalogue as a table or JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.catalogue", description="What of the field exists here."
    )
    parser.add_argument("--json", action="store_true", help="every row with all its evidence")
    parser.add_argument("--state", choices=STATES, help="only rows in this state")
    args = parser.parse_args()
    if hasattr(signal, "SIGPIPE"):  # a reader such as `head` may leave early
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)
    table = [row for row in catalogue() if args.state in (None, row["state"])]
    if args.json:
        print(json.dumps(table, indent=1, ensure_ascii=False))
        return
    for row in table:
        recipe = ", ".join(place.split(":")[-1] for place in row["recipe"] + row["function"][:1])
        where = ", ".join(Path(config).stem for config in row["config"])
        line = f"{row['id']:<5} {row['state']:<8} {row['name'][:58]:<58}  {recipe[:34]:<34}  {where[:18]:<18}"
        print(f"{line}  {'; '.join(row['result'])}".rstrip())
    counts = {state: sum(row["state"] == state for row in table) for state in STATES}
    print(f"\n{len(table)} rows: " + ", ".join(f"{n} {state}" for state, n in counts.items() if n))


if __name__ == "__main__":
    main()
