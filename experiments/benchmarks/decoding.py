"""Tokens a second of SmolLM2-135M, greedy and alone in its batch: float32, int4_g64 on the CPU kernel, and llama.cpp.

    python -m experiments.benchmarks.decoding [--peer PYTHON] [--tokens 128] [--rounds 7]

All decode after one prompt, in turn, so that a busy neighbour slows all of them alike; the time until the first token
is not counted. Ours is `qjax.models.generation.generate`, one compiled loop. Rounding to nearest goes over the layers'
matrices, or over the tied embedding as well, which is then looked up and multiplied from the same codes. llama.cpp
reads the file our weights come from (Q4_1, the embedding Q8_0), and Q4_0 made from it, the embedding included; it
rounds activations to int8 in front of every product, where ours stay float32. It decodes on one thread and on as many
as there are processors, and the better of the two is shown: on a busy machine that may be one.

The peer wants an environment with llama-cpp-python compiled for this processor, which takes ten minutes or more (what
is built without the flag is slower and no fair peer):

    python -m venv .venv-llamacpp
    CMAKE_ARGS=-DGGML_NATIVE=ON .venv-llamacpp/bin/pip install --no-binary llama-cpp-python llama-cpp-python
    python -m experiments.benchmarks.decoding --peer .venv-llamacpp/bin/python
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import qjax
from experiments.benchmarks.timing import seconds
from qjax.models.generation import generate

FORMAT = "int4_g64"
PROMPT = "The history of the steam engine begins"
FLOAT = "float32"
PREFIX = "llama.cpp, "  # of the names of what the peer decodes
PEER = Path(__file__).parent / "peer_llama_cpp.py"


class Run(NamedTuple):
    """One decoding: seconds for all tokens but the first, and the tokens."""

    seconds: float
    tokens: list[int]


def variants(model: Any, params: Mapping[str, Any], prompt: jax.Array) -> dict[str, Any]:
    """Parameters by name: float32, the layers in four bits, and the tied embedding too."""
    rounded, _ = qjax.run(qjax.chain(qjax.rtn(FORMAT)), model, params, [prompt])
    # The head contracts the second axis: a matrix [width, vocab] stored as [vocab, width].
    table = jnp.asarray(params["embed"])
    head = qjax.View.store(qjax.quantize(table.T, FORMAT), table.shape, in_axes=(1,), out_axes=(0,))
    return {
        FLOAT: params,
        f"{FORMAT}, head float32": qjax.prepare(rounded, target="cpu"),
        f"{FORMAT}, head {FORMAT}": qjax.prepare({**rounded, "embed": head}, target="cpu"),
    }


def decode(model: Any, params: Any, prompt: jax.Array, steps: int) -> Run:
    """One decoding by us; the first token takes what the prompt takes, which is subtracted."""
    first = seconds(generate, model, params, prompt, 1)
    start = time.perf_counter()
    tokens = generate(model, params, prompt, steps)[0].tolist()
    return Run(time.perf_counter() - start - first, tokens)


@contextmanager
def peer(python: str, file: Path, prompt: list[int], steps: int) -> Iterator[subprocess.Popen[str]]:
    """llama.cpp in a process of its own, which decodes once for every line."""
    with tempfile.TemporaryDirectory() as scratch:
        threads = ",".join(map(str, sorted({1, len(os.sched_getaffinity(0))})))
        command = [python, "-I", str(PEER), str(file), threads, str(steps), scratch, *map(str, prompt)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            try:
                yield process
            finally:
                assert process.stdin is not None  # it was opened as a pipe
                process.stdin.close()


def answer(process: subprocess.Popen[str]) -> Any:
    """The next line of the peer; SystemExit when it ended."""
    assert process.stdout is not None  # it was opened as a pipe
    line = process.stdout.readline()
    if not line:
        raise SystemExit(f"the peer ended with status {process.wait()}; its message is above")
    return json.loads(line)


def ask(process: subprocess.Popen[str]) -> dict[str, Run]:
    """One decoding with each of the peer's files on every number of threads."""
    assert process.stdin is not None  # it was opened as a pipe
    process.stdin.write("\n")
    process.stdin.flush()
    return {f"{PREFIX}{name}, {threads} thread(s)": Run(*run) for name, threads, *run in answer(process)}


def shown(rounds: Sequence[Mapping[str, Run]]) -> list[str]:
    """Ours, and of each of the peer's files the number of threads with the smallest median."""
    names = list(rounds[0])
    files: dict[str, list[str]] = {}
    for name in names:
        files.setdefault(name.rsplit(",", 1)[0] if name.startswith(PREFIX) else name, []).append(name)
    return [min(same, key=lambda name: median(rounds, name)) for same in files.values()]


def median(rounds: Sequence[Mapping[str, Run]], name: str) -> float:
    """Seconds of a decoding."""
    return statistics.median(r[name].seconds for r in rounds)


def common(a: list[int], b: list[int]) -> int:
    """How many tokens two texts begin with alike.

    >>> common([1, 2, 3], [1, 2, 4])
    2
    """
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y), len(a))


def table(rounds: Sequence[Mapping[str, Run]], sizes: Mapping[str, int], steps: int) -> Iterator[str]:
    """A line for each way to decode: tokens a second (median, best), its speed against others in a round, its text."""
    names = shown(rounds)
    for name in names:
        own = [r[name].seconds for r in rounds]
        ratios = [
            f"{statistics.median(r[other].seconds / r[name].seconds for r in rounds):5.2f} of {other}"
            for other in names
            if other != name and (other == FLOAT or other.startswith(PREFIX))
        ]
        alike = common(rounds[0][name].tokens, rounds[0][FLOAT].tokens)
        size = next(size for key, size in sizes.items() if name.startswith(key))
        yield (
            f"  {name:32s} {(steps - 1) / statistics.median(own):7.1f} tokens/s (best {(steps - 1) / min(own):.1f})"
            f"  {size / 2**20:6.1f} MiB  {'  '.join(ratios)}  first {alike} tokens as {FLOAT}"
        )


def main() -> None:
    """Decode in turn and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer", help="python of an environment with llama-cpp-python, built for this processor")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--rounds", type=int, default=7)
    args = parser.parse_args()
    if args.tokens < 2:
        parser.error(f"--tokens: the first comes with the prompt, so there must be two at least, got {args.tokens}")
    file = qjax.models.find(None)
    model, params, tokenizer = qjax.models.load(file)
    ids = [int(i) for i in tokenizer.encode(PROMPT)]
    prompt = jnp.asarray([ids], jnp.int32)
    ours = variants(model, params, prompt)
    sizes = {name: qjax.nbytes(own) for name, own in ours.items()}

    def turn() -> dict[str, Run]:
        return {name: decode(model, own, prompt, args.tokens) for name, own in ours.items()}

    print(f"SmolLM2-135M, {args.tokens} tokens after {len(ids)}; jax {jax.__version__}", flush=True)
    turn()  # compiles
    if args.peer is None:
        print("llama.cpp: no --peer", flush=True)
        rounds = [turn() for _ in range(args.rounds)]
    else:
        with peer(args.peer, file, ids, args.tokens) as process:
            hello = answer(process)
            print(f"llama-cpp-python {hello['version']}: {hello['system']}", flush=True)
            sizes |= {f"{PREFIX}{name}": size for name, size in hello["sizes"].items()}
            ask(process)
            rounds = [turn() | ask(process) for _ in range(args.rounds)]
    print("\n".join(table(rounds, sizes, args.tokens)))
    for name in shown(rounds):
        print(f"  {name}: {tokenizer.decode(rounds[0][name].tokens)[:100]!r}")


if __name__ == "__main__":
    main()
