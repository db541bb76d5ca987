"""Keep a finished run's numbers in the repository: `python -m experiments.record runs/quickstart/<hash>`."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.store import read_json, write_json

RESULTS = Path(__file__).resolve().parent / "results"


def record(folder: Path, results: Path = RESULTS) -> Path:
    """Write results/<study>.json: the table, the claims, and where they come from. Deterministic, like metrics.json."""
    metrics, provenance = read_json(folder / "metrics.json"), read_json(folder / "provenance.json")
    path = results / f"{provenance['study']}.json"
    write_json(path, {"run": f"{provenance['study']}/{folder.resolve().name}", **metrics, "provenance": provenance})
    return path


def main() -> None:
    """Record the named run."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.record", description="Keep a run's numbers in the repository."
    )
    parser.add_argument("run", type=Path, help="a run folder, runs/<study>/<hash>")
    print(record(parser.parse_args().run))


if __name__ == "__main__":
    main()
