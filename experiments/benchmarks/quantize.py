"""Time of `quantize` beside Qwix on one 1024 x 4096 float32 weight, both jitted, calls of the two interleaved.

    python -m experiments.benchmarks.quantize [--rows=1024 --columns=4096 --repeats=15]

Goal: at most Qwix's time for int4 (both axes), at most a third of it for nf4, mxfp4 and nvfp4. The ratio is that of the
medians; the minimum is printed beside it, because the machine is shared. What differs in kind: qjax keeps codes as
bytes where Qwix writes native int4 (which XLA:CPU packs slowly), its scales are stored narrow (bfloat16, e8m0, e4m3
under a tensor scale, doubly quantized for nf4), and its divisions are exact.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from qwix._src.core import qarray as qwix_qarray

import qjax

CASES = (
    ("int4_g128", "int4", 128, 0, 1.0),
    ("int4_g128", "int4", 128, 1, 1.0),
    ("nf4_g64", "nf4", 64, 0, 1 / 3),
    ("nf4_g64", "nf4", 64, 1, 1 / 3),
    ("mxfp4", "mxfp4", 32, 0, 1 / 3),
    ("mxfp4", "mxfp4", 32, 1, 1 / 3),
    ("nvfp4", "nvfp4", 16, 0, 1 / 3),
    ("nvfp4", "nvfp4", 16, 1, 1 / 3),
)
"""qjax format, Qwix type, block, block axis, goal for the ratio of times."""


def interleaved(fs: tuple[Callable[[Any], Any], ...], x: Any, repeats: int) -> list[list[float]]:
    """Seconds of `repeats` calls of each function, taken in turn after a warm-up."""
    times: list[list[float]] = [[] for _ in fs]
    for f in fs:
        jax.block_until_ready(f(x))
    for _ in range(repeats):
        for f, seconds in zip(fs, times, strict=True):
            start = time.perf_counter()
            jax.block_until_ready(f(x))
            seconds.append(time.perf_counter() - start)
    return times


def pair(fmt: str, qtype: str, block: int, axis: int) -> tuple[Callable[[Any], Any], Callable[[Any], Any]]:
    """The two jitted quantizers for one case."""
    how = qwix_qarray.HowToQuantize(qtype=qtype, tiled_axes={axis: block}, channelwise_axes=(1 - axis,))
    return jax.jit(lambda w: qjax.quantize(w, fmt, axis=axis)), jax.jit(lambda w: qwix_qarray.quantize(w, how))


def main() -> None:
    """Prints one line per case."""
    parser = argparse.ArgumentParser(description="Time of quantize beside Qwix.")
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--columns", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=15)
    arguments = parser.parse_args()
    w = jax.random.normal(jax.random.key(0), (arguments.rows, arguments.columns), jnp.float32)
    print(f"{'format':10s} axis   qjax ms (min)     qwix ms (min)   ratio   min/min  goal")
    for fmt, qtype, block, axis, goal in CASES:
        ours, theirs = interleaved(pair(fmt, qtype, block, axis), w, arguments.repeats)
        a, b = (1e3 * statistics.median(t) for t in (ours, theirs))
        low = 1e3 * min(ours), 1e3 * min(theirs)
        verdict = "met" if a / b <= goal else "missed"
        print(
            f"{fmt:10s} {axis:4d} {a:9.2f} ({low[0]:5.2f}) {b:9.2f} ({low[1]:5.2f})"
            f"  {a / b:5.2f}   {low[0] / low[1]:5.2f}    {goal:.2f} {verdict}"
        )


if __name__ == "__main__":
    main()
