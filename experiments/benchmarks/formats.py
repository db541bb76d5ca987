"""Speed of `quantize` and `dequantize` beside the peers', on the same float32 weight, calls of all taken in turn.

    python -m experiments.benchmarks.formats --peers .venv-oracle/bin/python
    python -m experiments.benchmarks.formats --rows=1024 --columns=4096 --only=int4_g128,nf4_g64,mxfp4,nvfp4

Qwix runs in this process; torchao, compressed-tensors, bitsandbytes and gguf in one of their own (`peer_formats`), in
an environment that has them (`make oracle` builds it). Without --peers only Qwix is compared. `--compile` adds
torchao under `torch.compile`, which needs a C++ compiler. The peers' blocks lie along the last axis; ours are timed
along both, Qwix's likewise, each against the fastest peer.

Goals, by the ratio of medians (that of the least times stands beside it, because a machine may be shared): no format
slower than its fastest peer, and `quantize` of nf4, mxfp4 and nvfp4 at most a third of Qwix's time. The share of the
bandwidth is that of the bytes in and out (codes in bytes) at the rate of a plain copy, measured in the same turns.

What differs in kind: our codes lie one in a byte, where torchao, bitsandbytes and gguf pack two into one and Qwix uses
native int4; our scales are stored narrow (bfloat16, e8m0, e4m3 under a tensor scale, doubly quantized for nf4) and our
divisions are exact.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import statistics
import subprocess
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from qwix._src.core import qarray as qwix_qarray

import qjax
from experiments.benchmarks.timing import seconds

QWIX: dict[str, dict[str, Any]] = {
    "int8": {"qtype": jnp.int8},
    "int4_g64": {"qtype": jnp.int4, "tile": 64},
    "int4_g128": {"qtype": jnp.int4, "tile": 128},
    "fp8_e4m3": {"qtype": jnp.float8_e4m3fn},
    "fp8_e5m2": {"qtype": jnp.float8_e5m2},
    "mxfp4": {"qtype": "mxfp4", "tile": 32},
    "mxfp8_e4m3": {"qtype": "mxfp8", "tile": 32},
    "nvfp4": {"qtype": "nvfp4", "tile": 16},
    "nf4_g64": {"qtype": "nf4", "tile": 64},
    "nf4_g64_f32": {"qtype": "nf4", "tile": 64},
}
THIRD = {"nf4_g64", "nf4_g64_f32", "mxfp4", "nvfp4"}
"""Formats whose `quantize` is to take at most a third of Qwix's time; its float4 and table encodings are slow."""

Timed = Callable[[], float]


class Contender(NamedTuple):
    """One library's way of one format: seconds of one call each."""

    library: str
    quantize: Timed
    dequantize: Timed


def ours(w: jax.Array, name: str, axis: int) -> tuple[Contender, int]:
    """qjax, jitted, and the bytes of its codes and scales as they lie in memory."""
    quantize = jax.jit(lambda w: qjax.quantize(w, name, axis=axis))
    q = quantize(w)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(q))
    return Contender("qjax", partial(seconds, quantize, w), partial(seconds, qjax.dequantize, q)), size


def qwix(w: jax.Array, name: str, axis: int) -> Contender:
    """Qwix, jitted; "channelwise" is every axis that is not cut into tiles."""
    how = dict(QWIX[name])
    tile = how.pop("tile", None)
    how = qwix_qarray.HowToQuantize(**how, tiled_axes={axis: tile} if tile else {}, channelwise_axes=(1 - axis,))
    quantize = jax.jit(lambda w: qwix_qarray.quantize(w, how))
    return Contender(
        "Qwix",
        partial(seconds, quantize, w),
        partial(seconds, jax.jit(qwix_qarray.dequantize), quantize(w)),
    )


class Peers:
    """The other process and its cases: {format: contenders}."""

    def __init__(self, python: str, weight: Path, compiled: bool) -> None:
        # -P: the folder of the script, with its kernels/, stays out of the other environment's path.
        command = [python, "-I", str(Path(__file__).parent / "peer_formats.py"), str(weight)]
        command += ["--compile"] if compiled else []
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.versions: dict[str, str | None] = self._answer()
        self.cases: dict[str, list[Contender]] = {}
        for number, (name, library) in enumerate(self._answer()):
            calls = (partial(self._request, number, way) for way in ("quantize", "dequantize"))
            self.cases.setdefault(name, []).append(Contender(library, *calls))

    def _request(self, number: int, way: str) -> float:
        assert self.process.stdin is not None
        print(number, way, file=self.process.stdin, flush=True)
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        if not (line := self.process.stdout.readline()):
            raise RuntimeError(f"the peers' process ended with status {self.process.wait()}; its errors stand above")
        return json.loads(line)

    def close(self) -> None:
        """End the process."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def turns(calls: list[Timed], repeats: int) -> list[list[float]]:
    """Seconds of `repeats` calls of each, taken in turn after two that warm it up."""
    for call in calls * 2:
        call()
    rounds = [[call() for call in calls] for _ in range(repeats)]
    return [list(seconds) for seconds in zip(*rounds, strict=True)]


def compare(
    name: str, way: str, axis: int, contenders: list[Contender], w: jax.Array, size: int, copy: Timed, repeats: int
) -> str:
    """Time one way of one format in turns and say in a line how it went; ours is the first of the contenders."""
    calls = [contender.quantize if way == "quantize" else contender.dequantize for contender in contenders]
    copied, mine, *theirs = turns([copy, *calls], repeats)
    times = {c.library: t for c, t in zip(contenders[1:], theirs, strict=True)}
    median = {library: statistics.median(t) for library, t in times.items()}
    fastest = min(median, key=lambda library: median[library])
    ratio, least = statistics.median(mine) / median[fastest], min(mine) / min(map(min, theirs))
    met, goal = ratio <= 1, f"at most {fastest}"
    if way == "quantize" and name in THIRD and "Qwix" in median:
        met, goal = met and 3 * statistics.median(mine) <= median["Qwix"], f"{goal} and a third of Qwix"
    share = (w.nbytes + size) / min(mine) / (2 * w.nbytes / min(copied))
    others = ", ".join(f"{library} {1e3 * median[library]:.1f} ({1e3 * min(t):.1f})" for library, t in times.items())
    return (
        f"{name:16s} {axis:3d}  {way:10s} {1e3 * statistics.median(mine):7.1f} ({1e3 * min(mine):6.1f}) {ratio:6.2f} "
        f"{least:6.2f} {100 * share:6.0f} %   {'met   ' if met else 'missed'} {goal}: {others}"
    )


def main() -> None:
    """Print a line a format, axis and way."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peers", help="python of an environment with torchao, compressed-tensors and gguf")
    parser.add_argument("--compile", action="store_true", help="also torchao under torch.compile")
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--only", type=lambda text: text.split(","), default=(), help="formats, with commas")
    arguments = parser.parse_args()
    w = jax.random.normal(jax.random.key(0), (arguments.rows, arguments.columns), jnp.float32)
    copy = partial(seconds, jax.jit(jnp.negative), w)
    with tempfile.TemporaryDirectory() as folder:
        np.save(weight := Path(folder) / "weight.npy", np.asarray(w))
        peers = Peers(arguments.peers, weight, arguments.compile) if arguments.peers else None
        versions = {"jax": jax.__version__, "qwix": importlib.metadata.version("qwix")}
        versions |= peers.versions if peers else {}
        print(f"{arguments.rows} x {arguments.columns} float32, {os.cpu_count()} cores;",
              ", ".join(f"{name} {version}" for name, version in versions.items() if version))  # fmt: skip
        print("format          axis  way          ours, ms   (least)  ratio  least  bandwidth  goal: peers, ms (least)")
        cases = peers.cases if peers else {}
        for name in arguments.only or dict.fromkeys([*QWIX, *cases]):
            for axis in (0, 1):
                mine, size = ours(w, name, axis)
                contenders = [mine, *([qwix(w, name, axis)] if name in QWIX else []), *cases.get(name, [])]
                for way in ("quantize", "dequantize"):
                    print(compare(name, way, axis, contenders, w, size, copy, arguments.repeats), flush=True)
        if peers:
            peers.close()


if __name__ == "__main__":
    main()
