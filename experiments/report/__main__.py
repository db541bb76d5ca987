"""`python -m experiments.report runs/ [--out=FILE] [--all]`."""

from __future__ import annotations

import argparse
from pathlib import Path

from experiments.report.load import find
from experiments.report.page import render
from experiments.store import write_bytes


def main() -> None:
    """Write the page and say where."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.report", description="One HTML page about finished runs."
    )
    parser.add_argument("runs", type=Path, nargs="?", default=Path("runs"), help="a folder of runs, or one run")
    parser.add_argument("--out", type=Path, help="the page to write (default: report.html in that folder)")
    parser.add_argument("--all", action="store_true", help="every run, not only the newest of each study")
    args = parser.parse_args()
    runs = find(args.runs, args.all)
    out = args.out or args.runs / "report.html"
    write_bytes(out, render(runs).encode())
    print(f"{out}: {', '.join(f'{run.study} ({len(run.rows)} rows)' for run in runs)}")


if __name__ == "__main__":
    main()
