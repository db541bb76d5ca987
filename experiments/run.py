"""Run one study: `python -m experiments.run --config=configs/quickstart.py [--config.field=value]`."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from experiments import settings

CONFIG = config_flags.DEFINE_config_file("config", None, "The study: a file under configs/.", lock_config=True)
RUNS = flags.DEFINE_string("runs", "runs", "Folder that receives runs/<study>/<hash>/.")


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows of metrics.json as aligned text.

    >>> row = dict(name="float", bpw=32.0, bpw_model=32.0, bytes=2e6, perplexity=30.1, kl_mean=0.0, kl_p99=0.0,
    ...            top1_flip=0.0, seed=0)
    >>> print(table([row]).splitlines()[1])
    float                                    0   32.00   32.00       2.0    30.100   0.0000    0.000    0.00 %
    """
    head = ("row", "seed", "bpw", "model", "MB", "ppl", "KL mean", "KL p99", "flips")
    lines = ["{:<36} {:>5}  {:>6}  {:>6} {:>9} {:>9} {:>8} {:>8} {:>9}".format(*head)]
    lines += [
        f"{r['name']:<36} {r['seed']:>5}  {r['bpw']:>6.2f}  {r['bpw_model']:>6.2f} {r['bytes'] / 1e6:>9.1f} "
        f"{r['perplexity']:>9.3f} {r['kl_mean']:>8.4f} {r['kl_p99']:>8.3f} {100 * r['top1_flip']:>7.2f} %"
        for r in rows
    ]
    return "\n".join(lines)


def claim_line(claim: dict[str, Any]) -> str:
    """One judged claim as a sentence."""
    from experiments.judging import sentence

    head = f"{sentence(claim)}: {claim['verdict']}"
    if "mean" not in claim:
        return f"{head} ({claim['reason']})"
    interval = "" if claim["low"] is None else f", 95 % interval {claim['low']:+.4f} to {claim['high']:+.4f}"
    return f"{head} (mean effect {claim['mean']:+.4f}{interval}, {claim['replicates']} replicates)"


def about(path: str) -> str:
    """The docstring of a config file: what the report says about the study."""
    return ast.get_docstring(ast.parse(Path(path.split(":")[0]).read_text(encoding="utf-8"))) or ""


def main(argv: Sequence[str]) -> None:
    """Check the config, run what is missing, print the table and where it is."""
    if len(argv) > 1:
        raise app.UsageError(f"unexpected argument {argv[1]!r}; fields are set as --config.field=value")
    config = settings.check(CONFIG.value)
    from experiments import store
    from experiments.study import Study  # after the config is known to be good: this imports jax and loads the model

    study = Study(config, Path(RUNS.value))
    p = study.provenance
    print(f"study      {config['study']}, {len(study.rows)} rows x {config['replicates']} replicates -> {study.folder}")
    print(f"model      {p['model']['name']}  sha256 {p['model']['sha256'][:16]}")
    print(f"data       {p['data']['name']}  sha256 {p['data']['sha256'][:16]}")
    print(f"protocol   {p['protocol']}")
    print(f"versions   {', '.join(f'{name} {version}' for name, version in p['versions'].items())}")
    study.run()
    store.write_bytes(
        study.folder / "about.txt", about(config_flags.get_config_filename(flags.FLAGS["config"])).encode()
    )
    metrics = store.read_json(study.folder / "metrics.json")
    print("\n" + table(metrics["rows"]))
    for claim in metrics["claims"]:
        print(claim_line(claim))
    print(f"\n{study.folder}/metrics.json\nreport: python -m experiments.report {RUNS.value}")


if __name__ == "__main__":
    flags.mark_flag_as_required("config")
    logging.set_verbosity(logging.WARNING)
    app.run(main)
