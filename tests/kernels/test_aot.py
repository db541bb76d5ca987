"""The TPU kernels through the real compiler, where libtpu is: they fit, do not spill, and beat bfloat16's floor."""

from __future__ import annotations

import json
import os
import pathlib
import subprocess
import sys

import pytest

from qjax.kernels.aot import tpu
from qjax.kernels.aot.chips import CHIPS, roofline

ROOT = pathlib.Path(__file__).parents[2]


def test_rooflines_are_the_arithmetic_of_the_chip():
    found = roofline(CHIPS["v6e"], 2 * 512 * 4096 * 4096, 4096 * 4096)
    assert found.compute == pytest.approx(2 * 512 * 4096 * 4096 / 920e12 * 1.75e9)
    assert found.memory == pytest.approx(4096 * 4096 / 1.64e12 * 1.75e9)
    assert found.cycles == found.compute


@pytest.mark.skipif(tpu.missing() is None, reason="libtpu is here")
def test_without_libtpu_it_says_so():
    with pytest.raises(RuntimeError, match="no libtpu"):
        tpu.estimate(CHIPS["v5e"], abs)


@pytest.mark.skipif(tpu.missing() is not None, reason=str(tpu.missing()))
def test_decode_kernels_compile_and_beat_the_bfloat16_floor():
    """In a process of its own: what compiles there must not have run anything under JAX."""
    command = "-m experiments.benchmarks.kernels --aot --json --tokens 16 --sizes 4096x4096 --chips v5e v6e --kernels"
    done = subprocess.run(
        [sys.executable, *command.split(), "w4a16 sums", "w8a16 sums"],
        cwd=ROOT,
        env=os.environ | {"JAX_COMPILATION_CACHE_DIR": "", "XLA_FLAGS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = {(r["chip"], r["kernel"]): r for r in map(json.loads, done.stdout.splitlines())}
    assert [key for key, r in found.items() if r["problem"] is not None or r["spills"]] == []
    for (chip, kernel), record in found.items():
        dense = roofline(CHIPS[chip], 2 * 16 * 4096 * 4096, 2 * 4096 * 4096).cycles
        assert record["cycles"] < dense / (2.4 if kernel.startswith("w4") else 1.8)
        assert record["share"] > 0.65
