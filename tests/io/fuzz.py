"""Bytes of our files changed at random for a while: `python -m tests.io.fuzz [--seconds 240] [--seed 0]`.

A safetensors folder, a GGUF file read as floats and as blocks, and a tree of ours are cut, overwritten and shifted,
most of all in their headers. Each changed file has to load, or to be refused by ValueError; anything else is printed
with the line of ours it came from, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import collections
import random
import resource
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from gguf import GGMLQuantizationType

import qjax
from qjax.models import load
from qjax.trace.paths import leaves_with_paths, replace_leaves
from tests.io.checkpoints import MODEL, WORDS, draw, parameters
from tests.models.test_gguf import ARCH, write

SIZES = (0, 1, 2**31, 2**32, 2**63 - 1, 2**64 - 1)  # what a hostile length says


def changed(data: bytes, chance: random.Random) -> bytes:
    """The file cut short, with a number written over, or with bytes changed, left out or put in."""
    head = min(len(data), chance.choice([64, 512, 4096, len(data)]))
    a, b = sorted((chance.randrange(head), chance.randrange(head)))
    noise = chance.randbytes(chance.choice([1, 2, 5, 40]))
    return chance.choice([
        data[:a],
        data[:a] + chance.choice((*SIZES, len(data), len(data) - 1)).to_bytes(8, "little") + data[a + 8 :],
        data[:a] + noise + data[a + len(noise) :],
        data[:a] + data[b:],
        data[:a] + noise + data[a:],
    ])  # fmt: skip


def targets(folder: Path) -> dict[str, tuple[Path, Callable[[], Any]]]:
    """Files by what reads them, and how."""
    params = parameters()
    leaves = leaves_with_paths(params)
    kernels = [path for path, w in leaves.items() if w.ndim == 2 and "/" in path]
    qparams = replace_leaves(params, {path: draw("int4_g32", leaves[path].shape) for path in kernels})
    served, blocks, tree = folder / "served", folder / "m.gguf", folder / "tree"
    qjax.io.export(served, MODEL, qparams, to="compressed-tensors", tokenizer=WORDS)
    weights = {path: np.zeros(shape, np.float32) for path, shape in ARCH.shapes.items()}
    write(blocks, weights, kind=GGMLQuantizationType.Q4_1)
    qjax.io.save(tree, qparams)
    return {
        "folder": (served / "model.safetensors", lambda: load(served)),
        "gguf": (blocks, lambda: load(blocks)),
        "gguf in blocks": (blocks, lambda: load(blocks, quantized=True)),
        "tree": (tree, lambda: qjax.io.load(tree)),
    }


def main() -> None:
    """Change files until the time is up; print what came of them."""
    parser = argparse.ArgumentParser(prog="python -m tests.io.fuzz", description="Files with bytes changed at random.")
    parser.add_argument("--seconds", type=float, default=240.0)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    chance, outcomes, strange = random.Random(args.seed), collections.Counter(), collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        files = targets(Path(folder))
        whole = {name: path.read_bytes() for name, (path, _) in files.items()}
        before, end = _peak(), time.monotonic() + args.seconds
        while time.monotonic() < end:
            name = chance.choice(list(files))
            path, read = files[name]
            _put(path, changed(whole[name], chance))
            try:
                read()
                outcomes[f"{name}: loaded"] += 1
            except ValueError:
                outcomes[f"{name}: refused"] += 1
            except Exception as error:
                frames = traceback.extract_tb(error.__traceback__)
                ours = [f"{frame.filename}:{frame.lineno}" for frame in frames if "qjax" in frame.filename]
                strange[f"{name}: {type(error).__name__}: {error} at {ours[-1] if ours else '?'}"] += 1
            _put(path, whole[name])
    for line, count in sorted((outcomes | strange).items()):
        print(f"{count:>8}  {line}")
    print(f"peak memory {_peak():.0f} MiB, {_peak() - before:.0f} above the start")
    sys.exit(bool(strange))


def _put(path: Path, data: bytes) -> None:
    """In place of the file, not into it: what was mapped before stays what it was."""
    scratch = path.with_suffix(".new")
    scratch.write_bytes(data)
    scratch.replace(path)


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
