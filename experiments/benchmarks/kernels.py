"""Low-bit matmul kernels. On CPU beside the float32 product: interleaved times, speed ratios, temporary memory.

python -m experiments.benchmarks.kernels [--sizes 4096x4096] [--tokens 1 16] [--repeats 15]
python -m experiments.benchmarks.kernels [--tune] [--sizes 4096x4096] [--tokens 16]   (where there is a Hopper GPU)
python -m experiments.benchmarks.kernels --aot [--chips v5e v6e H100 B200] [--sizes 4096x4096] [--tokens 16]
python -m experiments.benchmarks.kernels --aot --attention [int8 int4] [--chips v5e v6e]
python -m experiments.benchmarks.kernels --aot --experts [--chips v5e v6e]
python -m experiments.benchmarks.kernels --aot --rows [--chips v5e v6e]
python -m experiments.benchmarks.kernels --aot --epilogues [32 256] [--sizes 4096x4096] [--tokens 16] [--chips v5e v6e]
python -m experiments.benchmarks.kernels --aot --peers [--attention | --experts] [--chips v5e v6e]

With --aot the kernels for TPUs and GPUs are compiled for chips that are not here (needs qjax[kernels]; seconds each).
With --peers public kernels for TPUs are compiled beside them (pip install tokamax qwix; --no-deps tpu-inference).

Goal at 4096 x 4096, four-bit weights through the compiled kernel: one token at least 3.5 times as fast as float32 (on
AVX2 of 128-bit units and a busy machine 2.1 to 3.7 was seen), sixteen at least 1.5 times. The scan over groups, which
needs no compiler, is near float32 for one token, with temporary memory under a tenth of the dequantized weight (XLA:CPU
does not fuse a dequantization into the dot after it).
"""

from __future__ import annotations

import argparse
import functools
import os
import platform
import statistics
import sys
from collections.abc import Sequence
from typing import Any

import jax

import qjax
from experiments.benchmarks import (
    kernels_aot,
    kernels_attention,
    kernels_epilogues,
    kernels_experts,
    kernels_gpu,
    kernels_rows,
    kernels_sass,
)
from experiments.benchmarks.timing import seconds
from qjax import dispatch
from qjax.kernels.aot import gpu, tpu
from qjax.kernels.aot.chips import CHIPS
from qjax.operators.explanation import choices
from qjax.operators.grouped import NIBBLES
from qjax.operators.nibble_words import NAME
from qjax.operators.packed import pack


def measure(K: int, N: int, tokens: int, repeats: int) -> None:
    """One table: every way to multiply `tokens` rows with a [K, N] weight."""
    w = jax.random.normal(jax.random.key(0), (K, N))
    x = jax.random.normal(jax.random.key(1), (tokens, K))
    q4, q8 = qjax.quantize(w, "int4_g64"), qjax.quantize(w, "int8")
    words, nibbles = pack(q4, NAME), pack(q4, NIBBLES)
    calls: dict[str, tuple[Any, str | None]] = {"float32": (w, None)}
    calls |= {f"int4_g64 words, {how}": (words, how) for how in runnable(words, tokens)}
    for name, op in (("int4_g64 nibbles", nibbles), ("int4_g64 bytes", q4), ("int8 bytes", q8)):
        calls[f"{name}, groups"] = (op, "groups")
    compiled = {
        name: jax.jit(functools.partial(dispatch.matmul, implementation=how)).lower(x, op).compile()
        for name, (op, how) in calls.items()
    }
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):  # interleaved, so that a busy neighbour slows all of them alike
        for name, (op, _) in calls.items():
            times[name].append(seconds(compiled[name], x, op))
    base = times["float32"][1:]
    print(f"tokens {tokens}, {K} x {N}, float32 weight {K * N * 4 / 2**20:.1f} MiB")
    for name, (op, _) in calls.items():
        own = times[name][1:]
        ratio = statistics.median(b / t for b, t in zip(base, own, strict=True))
        analysis = compiled[name].memory_analysis()
        assert analysis is not None  # XLA:CPU always answers
        temporary = analysis.temp_size_in_bytes
        print(
            f"  {name:28s} {statistics.median(own) * 1e3:8.2f} ms (best {min(own) * 1e3:.2f})"
            f"  speed {ratio:5.2f} of float32 (best {min(base) / min(own):.2f})"
            f"  temporary {temporary / 2**20:6.2f} MiB = {temporary / (K * N * 4):.3f} of the float weight"
            f"  stored {dispatch.bits(op) / K / N:5.2f} bits a weight",
            flush=True,
        )


def runnable(op: Any, tokens: int) -> list[str]:
    """The implementations of a prepared leaf that run here; prints why the others do not."""
    (choice,) = choices(op, tokens)
    for name, why in choice.refused:
        print(f"  {name}: {why}")
    return [name for name in ("compiled", "dequantize") if name not in dict(choice.refused)]


def compile_for(
    chips: Sequence[str], sizes: Sequence[str], rows: Sequence[int], kernels: Sequence[str], as_json: bool, peers: bool
) -> None:
    """The tables of TPUs and of GPUs, or why there is none; SystemExit where there is neither."""
    kinds = {"tpu": [c for c in chips if c in CHIPS], "gpu": [c for c in chips if c in kernels_sass.KERNELS]}
    absent = {k: why for k, why in (("tpu", tpu.missing()), ("gpu", gpu.missing())) if kinds[k] and why is not None}
    for kind, why in absent.items():
        print(f"nothing for {', '.join(kinds[kind])}: {why}", file=sys.stderr, flush=True)
    if kinds["tpu"] and "tpu" not in absent:
        kernels_aot.print_table(kinds["tpu"], sizes, rows, kernels, as_json, peers)
    if kinds["gpu"] and "gpu" not in absent:
        kernels_sass.print_table(kinds["gpu"], sizes, rows, as_json)
    if all(kind in absent for kind in kinds if kinds[kind]):
        raise SystemExit(1)


def main() -> None:
    """Print a table for every size and number of tokens."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--sizes", nargs="+", help="KxN; 4096x4096, with --aot those of the published table")
    parser.add_argument("--tokens", type=int, nargs="+", help="rows of x; 1 16, with --aot 16 512 2048")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--aot", action="store_true", help="compile for chips that are not here")
    chips = [*CHIPS, *kernels_sass.KERNELS]
    parser.add_argument("--chips", nargs="+", default=["v5e", "v6e", "7x", "H100", "B200"], choices=chips)
    parser.add_argument(
        "--kernels", nargs="+", default=kernels_aot.KERNELS, choices=kernels_aot.KERNELS, help="of TPUs"
    )
    parser.add_argument(
        "--attention", nargs="*", choices=kernels_attention.CODES, help="of TPUs over a cache, instead of products"
    )
    parser.add_argument("--experts", action="store_true", help="of TPUs for rows sorted by expert, instead of products")
    parser.add_argument("--rows", action="store_true", help="of TPUs for rows of an embedding, instead of products")
    parser.add_argument(
        "--epilogues", nargs="*", type=int, metavar="RANK", help="of TPUs, corrections in the kernel and apart"
    )
    parser.add_argument("--peers", action="store_true", help="with --aot: public kernels for TPUs beside ours")
    parser.add_argument("--tune", action="store_true", help="on a GPU: every tiling of the kernel")
    parser.add_argument("--json", action="store_true", help="a record a line")
    arguments = parser.parse_args()
    alone = arguments.rows or arguments.epilogues is not None  # without peers
    if arguments.peers and (alone or not arguments.aot):
        parser.error("--peers: they are compiled for TPUs that are not here: say --aot, without --rows or --epilogues")
    if arguments.attention is not None or arguments.experts or alone:
        why = tpu.missing() if arguments.aot else "they are for TPUs: say --aot"
        if why is not None:
            parser.error(f"--attention, --experts, --rows, --epilogues: {why}")
        tpus = [c for c in arguments.chips if c in CHIPS]
        if arguments.experts:
            kernels_experts.print_table(tpus, arguments.json, arguments.peers)
        elif arguments.rows:
            kernels_rows.print_table(tpus, arguments.json)
        elif arguments.epilogues is not None:
            sizes, tokens = arguments.sizes or ("4096x4096",), arguments.tokens or (16,)
            ranks = arguments.epilogues or kernels_epilogues.RANKS
            kernels_epilogues.print_table(tpus, sizes, tokens, ranks, arguments.json)
        else:
            codes = arguments.attention or list(kernels_attention.CODES)
            kernels_attention.print_table(tpus, codes, arguments.json, arguments.peers)
        return
    if arguments.aot:
        sizes, rows = arguments.sizes or kernels_aot.SIZES, arguments.tokens or kernels_aot.ROWS
        compile_for(arguments.chips, sizes, rows, arguments.kernels, arguments.json, arguments.peers)
        return
    if arguments.tune and jax.default_backend() != "gpu":
        parser.error(f"--tune: it is for a GPU, and JAX finds none: {jax.default_backend()}")
    if jax.default_backend() == "gpu":
        sizes, rows = arguments.sizes or kernels_aot.SIZES, arguments.tokens or (1, *kernels_aot.ROWS)
        kernels_gpu.print_table(sizes, rows, arguments.repeats, arguments.tune, arguments.json)
        return
    where = platform.processor() or platform.machine()
    print(f"jax {jax.__version__}, {jax.default_backend()}, {where}, {os.cpu_count()} cores")
    for size in arguments.sizes or ("4096x4096",):
        K, N = map(int, size.split("x"))
        for tokens in arguments.tokens or (1, 16):
            measure(K, N, tokens, arguments.repeats)


if __name__ == "__main__":
    main()
