"""The benchmark of kernels compiled for chips that are not here, as records."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys
import tempfile
from typing import Any

ROOT = pathlib.Path(__file__).parents[2]


def benchmark(*options: str) -> list[dict[str, Any]]:
    """The records of the benchmark, from a process of its own: what compiles must not have run anything under JAX."""
    command = "-m experiments.benchmarks.kernels --aot --json --sizes 4096x4096 " + options[0]
    logs = set(pathlib.Path(tempfile.gettempdir()).glob("tpu_driver*"))
    done = subprocess.run(
        [sys.executable, *command.split(), *options[1:]],
        cwd=ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": "", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert set(pathlib.Path(tempfile.gettempdir()).glob("tpu_driver*")) <= logs  # libtpu can write gigabytes of them
    return [json.loads(line) for line in done.stdout.splitlines()]
