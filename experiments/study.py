"""A study, row by row: each finished row is on disk before the next begins; a second call computes what is missing.

The folder of a run:

    config.json       the resolved config
    provenance.json   seeds, versions, data, model and source hashes, device, protocol
    metrics.json      the table and the judged claims; deterministic fields only
    rows/*.json       one row each: its metrics, its per-leaf report, its generated samples, sizes of its inputs
    outliers.npz      sizes of weights and of inputs, for the pictures
    timing.jsonl      seconds and memory: what may differ between two runs
    state/            stages of the row under way; removed when the row is done
"""

from __future__ import annotations

import itertools
import resource
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

import qjax
from experiments import errors, judging, outliers, places, provenance, store, subject, sweep
from qjax import data, evaluate
from qjax.metrics import next_token_loss
from qjax.trace.stages import CannotCut

ROW_FIELDS = (
    "name", "recipe", "format", "bpw", "bpw_model", "bytes", "perplexity", "kl_mean", "kl_p99", "top1_flip", "seed",
)  # fmt: skip


class Study:
    """One config being run: what all its rows share. `run()` is the whole of it."""

    def __init__(self, config: dict[str, Any], root: Path) -> None:
        self.config = config
        self.rows = sweep.rows(config)
        self.chains = {row.name: row.build() for row in self.rows if row.method != sweep.FLOAT}
        self.subject = subject.load(config["model"])
        self.runnable = subject.runnable(self.subject)  # kept: a row whose twin has run is not compiled again
        if config["replicates"] > 1 and not self.subject.cells:
            raise ValueError(
                f"config.replicates is {config['replicates']}, but the model's weights lie on no known grid"
            )
        text = data.load_text(config["data"])
        parts = data.split(text.text)
        settings = config["evaluation"]
        self.calibration = np.asarray(subject.tokenize(self.subject, parts.calibration))
        measured = np.asarray(subject.tokenize(self.subject, getattr(parts, settings["part"])))
        windows = data.windows(measured, settings["length"], settings["windows"])
        development = np.asarray(subject.tokenize(self.subject, parts.development))
        self.probe = data.windows(development, min(settings["length"], 256), 1)
        self.batches = [windows[i : i + settings["batch"]] for i in range(0, len(windows), settings["batch"])]
        length = settings["length"]
        protocol = evaluate.PROTOCOL.format(length=length, scored=length - 1)
        protocol = f"{settings['windows']} windows of the {settings['part']} part: {protocol}"
        self.provenance = provenance.collect(config, text.name, text.sha256, self.subject.params, protocol)
        self.folder = root / config["study"] / store.digest({"config": config, **self.provenance})

    def run(self) -> Path:
        """Compute every missing row, then the table; returns the folder."""
        store.write_json(self.folder / "config.json", self.config)
        store.write_json(self.folder / "provenance.json", self.provenance)
        self.uses = qjax.uses(self.subject.model, self.subject.params, self.probe)
        self.targets = list(self.uses.targets())
        if self.config["pictures"] and not (self.folder / "outliers.npz").exists():
            with self.timed("pictures", "outliers"):
                self.picture()
        bar = tqdm(total=self.config["replicates"] * len(self.rows), desc=self.config["study"], unit="row")
        for replicate in range(self.config["replicates"]):
            missing = [row for row in self.rows if not self.file(row, replicate).exists()]
            bar.update(len(self.rows) - len(missing))
            if not missing:
                continue
            weights = self.weights(replicate)
            reference = self.reference(weights)
            inputs = errors.inputs(self.subject.model, weights, self.probe, self.targets)
            for row in missing:
                bar.set_postfix_str(row.name)
                store.write_json(self.file(row, replicate), self.compute(row, replicate, weights, reference, inputs))
                shutil.rmtree(self.folder / "state", ignore_errors=True)
                bar.update()
        bar.close()
        store.write_json(self.folder / "metrics.json", self.metrics())
        return self.folder

    def reference(self, weights: Any) -> evaluate.Reference:
        """Logits of the float model on the windows everything is measured on."""
        try:
            return evaluate.remembered(self.subject.model, weights, self.batches, progress=_bar("float"))
        except CannotCut as error:
            tqdm.write(f"the float model runs again for every row, since it cannot be cut before its head: {error}")
            return evaluate.recomputed(self.subject.model, weights, self.batches)

    def file(self, row: sweep.Row, replicate: int) -> Path:
        """Where a row is kept."""
        return self.folder / "rows" / f"{replicate}-{store.slug(row.name)}.json"

    def weights(self, replicate: int) -> Any:
        """Float params of a replicate; a single one is the model as it was shipped."""
        if self.config["replicates"] == 1:
            return self.subject.params
        return evaluate.perturb(self.subject.params, self.subject.cells, replicate)

    def sample(self, replicate: int) -> list[np.ndarray]:
        """Calibration sample number `replicate`."""
        settings = self.config["calibration"]
        seed = self.config["seed"] + replicate
        return list(data.sample(self.calibration, settings["length"], settings["windows"], seed, settings["batch"]))

    def picture(self) -> None:
        """Sizes of weights and inputs of the float model, on the first calibration batches."""
        model, params = self.subject.model, self.subject.params
        sample = self.sample(0)[:2]
        store.write_arrays(self.folder / "outliers.npz", outliers.collect(model, params, sample, self.targets))

    def compute(
        self, row: sweep.Row, replicate: int, weights: Any, reference: evaluate.Reference, inputs: dict[str, jax.Array]
    ) -> dict[str, Any]:
        """One row: the recipe, then every number. The float row's are those of the reference."""
        key = jax.random.fold_in(jax.random.key(self.config["seed"]), replicate)
        leaves: list[dict[str, Any]] = []
        program, params, targets = weights, weights, []
        if row.method != sweep.FLOAT:
            with self.timed(row.name, "quantize", replicate):
                program, report = qjax.run(
                    self.chains[row.name], self.subject.model, weights, self.sample(replicate),
                    key=key, schedule=self.config["schedule"], within=self.config["within"],
                    loss=_loss(self.chains[row.name]), checkpoint=str(self.folder / "state"), progress=True,
                )  # fmt: skip
            params = program.params if isinstance(program, qjax.Program) else program
            targets = list(report.targets)
            with self.timed(row.name, "errors", replicate):
                moved = errors.output_errors(inputs, self.uses, weights, params, report.rewritten)
            leaves = [
                {k: v for k, v in dict(leaf).items() if k != "seconds"} | {"output_error": moved.get(leaf["path"])}
                for leaf in report.rows
            ]
            for leaf in report.rows:
                self.log({"row": row.name, "seed": replicate, "leaf": leaf["path"], "seconds": leaf["seconds"]})
        with self.timed(row.name, "evaluate", replicate):
            if row.method == sweep.FLOAT:  # the reference has run through all but the head already
                turn = itertools.count()
                scores = evaluate.evaluate(lambda *_: reference(next(turn)), program, self.batches)
            else:
                scores = evaluate.evaluate(
                    self.runnable, program, self.batches, reference=reference, progress=_bar(row.name)
                )
        with self.timed(row.name, "size", replicate):
            bits = evaluate.bpw_model(params)
            size = evaluate.disk_bytes(params)
        metrics = {
            "name": row.name,
            "recipe": row.recipe,
            "format": row.format,
            "bpw": evaluate.bpw(params, targets) if targets else bits,
            "bpw_model": bits,
            "bytes": size,
            "perplexity": scores.perplexity,
            "kl_mean": scores.kl_mean or 0.0,
            "kl_p99": scores.kl_p99 or 0.0,
            "top1_flip": scores.top1_flip or 0.0,
            "seed": replicate,
        }
        entry = {"metrics": metrics, "leaves": leaves, "samples": self.samples(row, replicate, program)}
        model = self.subject.model
        if (self.config["pictures"] and replicate == 0) or self.config["relations"]:
            with self.timed(row.name, "outliers", replicate):
                entry["inputs"] = outliers.meeting(model, program, self.probe, self.uses, self.targets)
        if self.config["places"] and row.method == sweep.FLOAT:
            wanted = dict.fromkeys((measure, p) for measure, *pair in self.config["places"] for p in pair)
            with self.timed(row.name, "places", replicate):
                window = self.sample(replicate)[0]
                entry["places"] = places.measured(model, weights, window, list(wanted))
        return entry

    def samples(self, row: sweep.Row, replicate: int, program: Any) -> list[dict[str, str]]:
        """Greedy continuations of the config's prompts by the rows it names, in the first replicate."""
        settings = self.config["samples"]
        if replicate or not settings["prompts"] or row.name not in settings["rows"]:
            return []
        prompts = settings["prompts"]
        with self.timed(row.name, "samples", replicate):
            texts = subject.continuations(self.subject, program, prompts, settings["steps"])
        return [{"prompt": prompt, "text": text} for prompt, text in zip(prompts, texts, strict=True)]

    def metrics(self) -> dict[str, Any]:
        """The table and the judged claims, from the rows on disk."""
        found = {
            (replicate, row.name): store.read_json(self.file(row, replicate))
            for replicate in range(self.config["replicates"])
            for row in self.rows
        }
        claims = [self.judge(better, worse, found) for better, worse in self.config["claims"]]
        floats = [found[r, sweep.FLOAT] for r in range(self.config["replicates"])]
        claims += [
            judging.place(measure, larger, smaller, [entry["places"] for entry in floats])
            for measure, larger, smaller in self.config["places"]
        ]
        rounded = [[found[r, row.name] for row in self.rows[1:]] for r in range(self.config["replicates"])]
        claims += [judging.relation(cause, effect, rounded) for cause, effect in self.config["relations"]]
        return {"rows": [entry["metrics"] for entry in found.values()], "claims": claims}

    def judge(self, better: str, worse: str, found: dict[tuple[int, str], dict[str, Any]]) -> dict[str, Any]:
        """A claim about two rows, or why it cannot be judged."""
        names = {row.name for row in self.rows}
        if absent := [name for name in (better, worse) if name not in names]:
            reason = f"no row {absent[0]!r} in this run"
            return {"better": better, "worse": worse, "verdict": "not judged", "reason": reason}
        pairs = [(found[r, better], found[r, worse]) for r in range(self.config["replicates"])]
        return judging.rows(better, worse, pairs)

    def log(self, record: dict[str, Any]) -> None:
        """One line of `timing.jsonl`."""
        store.append_line(self.folder / "timing.jsonl", record)

    @contextmanager
    def timed(self, row: str, what: str, replicate: int = 0) -> Iterator[None]:
        """Log seconds and the process's peak memory of what happens inside."""
        start = time.perf_counter()
        yield
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        self.log({
            "row": row, "seed": replicate, "what": what, "seconds": round(time.perf_counter() - start, 3),
            "process_peak_mib": round(peak, 1), "at": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        })  # fmt: skip


def _bar(name: str) -> Any:
    return lambda batches: tqdm(batches, desc=f"  {name}: evaluate", unit="batch", leave=False)


def _loss(chain: Any) -> Any:
    """The language model's own loss, for chains of which a transform asks for one."""
    asking = any(t.needs.loss or t.needs.sensitivity == "loss" for t in chain)
    return next_token_loss if asking else None
