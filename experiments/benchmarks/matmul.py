"""Low-bit matmul on CPU beside the float32 one: interleaved medians, speed ratios, temporary memory.

python -m experiments.benchmarks.matmul [--size 4096] [--repeats 15]

Expected at 4096 x 4096: int4_g64 packed, batch 1, faster than float32, with temporary memory under a tenth of the
dequantized weight (XLA:CPU does not fuse a dequantization into the dot that follows; a scan over groups avoids it).
"""

from __future__ import annotations

import argparse
import functools
import platform
import statistics

import jax

import qjax
from experiments.benchmarks.timing import seconds
from qjax import dispatch
from qjax.operators import prepare


def measure(size: int, tokens: int, repeats: int) -> None:
    """One table: every way to multiply `tokens` rows with a [size, size] weight."""
    w = jax.random.normal(jax.random.key(0), (size, size))
    x = jax.random.normal(jax.random.key(1), (tokens, size))
    q4, q8 = qjax.quantize(w, "int4_g64"), qjax.quantize(w, "int8")
    packed = prepare({"w": q4})["w"]
    calls = {
        "float32": (w, None),
        "int4_g64 packed, groups": (packed, "groups"),
        "int4_g64 bytes, groups": (q4, "groups"),
        "int8 bytes, groups": (q8, "groups"),
        "int4_g64 packed, dequantize": (packed, "dequantize"),
    }
    compiled = {
        name: jax.jit(functools.partial(dispatch.matmul, implementation=how)).lower(x, op).compile()
        for name, (op, how) in calls.items()
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):  # interleaved, so that a busy neighbour slows all of them alike
        for name, (op, _) in calls.items():
            times[name].append(seconds(compiled[name], x, op))
    base = times["float32"][1:]
    print(f"tokens {tokens}, {size} x {size}, float32 weight {size * size * 4 / 2**20:.0f} MiB")
    for name, (op, _) in calls.items():
        ratios = [b / t for b, t in zip(base, times[name][1:], strict=True)]
        analysis = compiled[name].memory_analysis()
        assert analysis is not None  # XLA:CPU always answers
        temporary = analysis.temp_size_in_bytes
        print(
            f"  {name:28s} {statistics.median(times[name][1:]) * 1e3:7.2f} ms (best {min(times[name][1:]) * 1e3:.2f})"
            f"  speed {statistics.median(ratios):5.2f} of float32"
            f"  temporary {temporary / 2**20:6.2f} MiB = {temporary / (size * size * 4):.3f} of the float weight"
            f"  stored {dispatch.bits(op) / size / size:5.2f} bits a weight",
            flush=True,
        )


def main() -> None:
    """Print the tables for one and sixteen tokens."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--tokens", type=int, nargs="+", default=[1, 16])
    arguments = parser.parse_args()
    print(f"jax {jax.__version__}, {jax.default_backend()}, {platform.processor() or platform.machine()}")
    for tokens in arguments.tokens:
        measure(arguments.size, tokens, arguments.repeats)


if __name__ == "__main__":
    main()
