"""A study from its command line: the table, the report, and a kill in the middle."""

from __future__ import annotations

import glob
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
TOY = ROOT / "tests" / "experiments" / "toy_study.py"
ROWS = 10
# One device and one process per run: eight host devices would only make a toy slower.
ENVIRONMENT = {**os.environ, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": ""}


@pytest.fixture(scope="module", autouse=True)
def compiled(tmp_path_factory):
    """The runs share what they compile."""
    ENVIRONMENT["JAX_COMPILATION_CACHE_DIR"] = str(tmp_path_factory.mktemp("compiled"))
    ENVIRONMENT["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"


def command(runs, *flags):
    return [sys.executable, "-m", "experiments.run", f"--config={TOY}", f"--runs={runs}", *flags]


def study(runs, *flags):
    return subprocess.run(
        command(runs, *flags), cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True, timeout=600, check=False
    )


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(folder of runs, folder of the run, what was printed)."""
    runs = tmp_path_factory.mktemp("runs")
    done = study(runs)
    assert done.returncode == 0, done.stderr[-3000:]
    (folder,) = (runs / "toy").iterdir()
    return runs, folder, done.stdout


@pytest.mark.slow
def test_the_folder_holds_everything(finished):
    _, folder, printed = finished
    metrics = json.loads((folder / "metrics.json").read_text())
    rows = metrics["rows"]
    assert len(rows) == ROWS
    for row in rows:
        assert list(row) == [
            "name", "recipe", "format", "bpw", "bpw_model", "bytes", "perplexity", "kl_mean", "kl_p99", "top1_flip",
            "seed",
        ]  # fmt: skip
    assert [r["name"] for r in rows[:4]] == ["float", "rtn int3_g64_affine", "gptq int3_g64_affine", "w8a8 token"]
    floats = [r for r in rows if r["name"] == "float"]
    assert floats[0]["kl_mean"] == floats[0]["top1_flip"] == 0.0
    assert floats[0]["perplexity"] != floats[1]["perplexity"], "each replicate has weights of its own"
    by_name = {r["name"]: r for r in rows if r["seed"] == 0}
    rounded = by_name["rtn int3_g64_affine"]
    assert 3.25 < rounded["bpw"] < 3.35 < rounded["bpw_model"] < 32 == by_name["float"]["bpw"]
    assert rounded["bytes"] < by_name["float"]["bytes"]
    assert by_name["w8a8 token"]["kl_mean"] < by_name["rtn int3_g64_affine"]["kl_mean"]
    judged, missing, places, slow, matrices, zeros = metrics["claims"]
    assert places["better"] == "largest/median channel of keys" and places["matrices"][0]["wins"] <= 2
    entry = json.loads((folder / "rows" / "1-float.json").read_text())["places"]
    pair = [np.array(entry[f"kurtosis of {name} keys"]) for name in ("fast", "slow")]
    assert slow["log_ratios"][1] == pytest.approx(np.log(pair[0] / pair[1]).mean(), rel=1e-6)
    assert all(-1 <= r <= 1 for claim in (matrices, zeros) for r in claim["log_ratios"])
    assert judged["replicates"] == 2 and len(judged["matrices"]) == 2
    assert missing["verdict"] == "not judged" and "rtn nothing" in missing["reason"]
    provenance = json.loads((folder / "provenance.json").read_text())
    assert len(provenance["data"]["sha256"]) == 64 and provenance["data"]["sha256"][:16] in printed
    assert "windows of 64 tokens" in provenance["protocol"]
    assert {"python", "jax", "numpy"} <= provenance["versions"].keys()
    assert json.loads((folder / "config.json").read_text())["calibration"] == {"windows": 4, "length": 64, "batch": 2}
    timing = [json.loads(line) for line in (folder / "timing.jsonl").read_text().splitlines()]
    assert {"quantize", "evaluate", "samples"} <= {line.get("what") for line in timing}
    assert "seconds" not in (folder / "metrics.json").read_text() and not (folder / "state").exists()
    sizes = json.loads((folder / "rows" / "0-float.json").read_text())["inputs"]
    assert sizes and all(x["largest"] > x["median"] > 0 for x in sizes.values())
    assert "gptq int3_g64_affine better than rtn int3_g64_affine" in printed


@pytest.mark.slow
def test_a_finished_study_computes_nothing(finished):
    runs, folder, _ = finished
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("rows/*")}
    assert study(runs).returncode == 0
    assert before == {path: path.stat().st_mtime_ns for path in folder.rglob("rows/*")}


@pytest.mark.slow
def test_killed_and_resumed_it_gives_the_same_bytes(finished, tmp_path):
    _, whole, _ = finished
    process = subprocess.Popen(
        command(tmp_path), cwd=ROOT, env=ENVIRONMENT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 300
    # A second saved block: in the middle of GPTQ, with rows behind it (rounding has one block, the whole model).
    # The glob module leaves out a folder that the run removes while it looks; pathlib's raises before Python 3.13.
    while not glob.glob("toy/*/state/pass-0/block-0001.*", root_dir=tmp_path) and time.monotonic() < deadline:
        assert process.poll() is None, "the run ended before it could be killed"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (folder,) = (tmp_path / "toy").iterdir()
    assert folder.name == whole.name
    assert not (folder / "metrics.json").exists()
    kept = {path: path.read_bytes() for path in folder.glob("rows/*.json")}
    assert 1 <= len(kept) < ROWS
    assert any(folder.glob("state/pass-0/block-*")), "the row under way has saved blocks"
    done = study(tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert all(path.read_bytes() == data for path, data in kept.items()), "finished rows are not computed again"
    assert (folder / "metrics.json").read_bytes() == (whole / "metrics.json").read_bytes()


@pytest.mark.slow
def test_the_report_of_a_real_run(finished):
    runs, _, _ = finished
    done = subprocess.run(
        [sys.executable, "-m", "experiments.report", str(runs)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    page = (runs / "report.html").read_text(encoding="utf-8")
    assert "gptq int3_g64_affine" in page and "The assert" in page and page.count("<svg") >= 5


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--config.nothing=3", "nothing"),
        ("--config.recipe.format=int33_g64", "int33_g64"),
        ("--config.calibration.batch=3", "does not divide"),
        ("--config.evaluation.part=calibration", "measure on one of"),
        ("stray", "unexpected argument"),
    ],
)
def test_bad_flags_are_refused(tmp_path, flag, message):
    done = study(tmp_path, flag)
    assert done.returncode != 0
    assert message in done.stderr + done.stdout
    assert not list(tmp_path.iterdir())
