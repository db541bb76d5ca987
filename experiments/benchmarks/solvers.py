"""Time and error of each solver on one matrix of a small and of a large model, beside its reference where one runs.

    python -m experiments.benchmarks.solvers --gptq .venv-llmcompressor/bin/python --hqq .venv-oracle/bin/python

Random weights of heavy tails and inputs that hang together; 4 bits in groups of 64. For each solver: seconds of the
first call, compilation included, and the least of --repeats later ones; the error by what the solver minimizes (the
output, for HQQ the sum of |W - Ŵ|^0.7), relative to rounding to nearest; and with --stacked n the seconds of n matrices
under one vmap, divided by n times those of one. The references are llm-compressor's GPTQ and torchao's HQQ, each on the
same arrays in a process of its own right afterwards; AWQ's and SignRound's take whole models, not matrices.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks.gptq_model import HERE, child
from experiments.benchmarks.timing import seconds
from qjax import dispatch, solvers
from qjax.formats import Format, Int
from qjax.solvers import awq, gptq, loftq

Solve = Callable[[jax.Array, jax.Array], Any]

FORMAT = "int4_g64_f32"
FLOAT_ZEROS = Format(Int(4, signed=False), 64, scale="float32", rule="minmax", offset="minimum")


def searched(w: jax.Array, gram: jax.Array) -> Any:
    """AWQ's twenty exponents by the output error of rounding, then the clip of every group."""
    found = awq.search((w,), gram, jnp.sqrt(jnp.diagonal(gram)), FORMAT)
    scaled = gram / jnp.outer(found.scale, found.scale)
    return dispatch.dense(awq.clipped(w * found.scale[:, None], scaled, FORMAT)) / found.scale[:, None]


SOLVERS: Mapping[str, Solve] = {
    "rtn": lambda w, gram: solvers.rtn(w, FORMAT),
    "gptq": lambda w, gram: gptq.sweep(w, gptq.factor(gram), FORMAT)[0],
    "hqq": lambda w, gram: solvers.hqq(w, FLOAT_ZEROS),
    "awq": searched,
    "gptaq": lambda w, gram: solvers.gptaq(w, gram, gram, FORMAT),
    "gpfq": lambda w, gram: solvers.gpfq(w, gram, FORMAT),
    "owq": lambda w, gram: solvers.owq(w, gram, FORMAT, channels=6),
    "spqr": lambda w, gram: solvers.spqr(w, gram, FORMAT),
    "squeezellm": lambda w, gram: solvers.squeezellm(w, jnp.diagonal(gram)[:, None], "int4"),
    "quip": lambda w, gram: solvers.quip(w, gram, FORMAT, jax.random.key(0)),
    "decoupleq": lambda w, gram: solvers.decoupleq(w, gram, FORMAT),
    "alternating": lambda w, gram: solvers.alternating(w, gram, FORMAT),
    "quantease": lambda w, gram: solvers.quantease(w, gram, FORMAT),
    "loftq": lambda w, gram: loftq.alternate(w, lambda m: solvers.rtn(m, FORMAT), 16),
}


def problem(inputs: int, outputs: int) -> tuple[jax.Array, jax.Array]:
    """A weight `[inputs, outputs]` and the Gram matrix of twice as many tokens as inputs."""
    rng = np.random.default_rng(0)
    hidden = rng.normal(size=(2 * inputs, inputs // 8)).astype(np.float32)
    x = hidden @ rng.normal(size=(inputs // 8, inputs)).astype(np.float32) / 8
    x = (x + rng.normal(size=x.shape).astype(np.float32)) * np.exp(0.5 * rng.normal(size=inputs)).astype(np.float32)
    w = rng.standard_t(5, size=(inputs, outputs)).astype(np.float32) / 50
    return jnp.asarray(w), jnp.asarray(x.T @ x)


def lost(name: str, w: jax.Array, gram: jax.Array, values: jax.Array) -> float:
    """What the solver minimizes."""
    error = w - values
    if name == "hqq":
        return float(jnp.sum(jnp.abs(error) ** 0.7))
    return float(jnp.sqrt(solvers.objective(gram, error)))


def values(found: Any) -> jax.Array:
    """The matrix that a solver's result stands for."""
    if isinstance(found, loftq.Alternation):
        return dispatch.dense(found.q) + found.a @ found.b
    return jnp.asarray(dispatch.dense(found)).astype(jnp.float32)


def measure(name: str, w: jax.Array, gram: jax.Array, peer: str | None, stacked: int, repeats: int) -> str:
    """One line of the table."""
    solve = jax.jit(SOLVERS[name])
    first, found = seconds(solve, w, gram), solve(w, gram)
    later = min(seconds(solve, w, gram) for _ in range(repeats))
    nearest = solvers.rtn(w, FLOAT_ZEROS if name == "hqq" else FORMAT)
    unit = lost(name, w, gram, values(nearest))
    line = f"{name:<12} {first:>9.2f} {later:>9.3f} {lost(name, w, gram, values(found)) / unit:>8.3f}"
    if stacked > 1:
        many = jnp.broadcast_to(w, (stacked, *w.shape)), jnp.broadcast_to(gram, (stacked, *gram.shape))
        mapped = jax.jit(jax.vmap(SOLVERS[name]))
        seconds(mapped, *many)
        line += f" {seconds(mapped, *many) / (stacked * later):>8.2f}"
    if peer:
        with tempfile.TemporaryDirectory() as folder:
            np.save(Path(folder) / "w.npy", w)
            np.save(Path(folder) / "gram.npy", gram)
            # Isolated: a PYTHONPATH with this tree would show the peer's libraries a module of ours named kernels.
            theirs = child([peer, "-I", str(HERE / "peer_solvers.py"), folder, name, str(repeats)])
            error = lost(name, w, gram, jnp.asarray(np.load(Path(folder) / "peer.npy"))) / unit
        line += f"   {theirs['versions']}: {theirs['seconds']:.3f} s, error {error:.3f}; ratio of times"
        line += f" {later / theirs['seconds']:.2f}"
    return line


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--solvers", default=",".join(SOLVERS))
    parser.add_argument("--sizes", default="1536x576,4096x4096")
    parser.add_argument("--stacked", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--gptq", help="python of an environment with llmcompressor")
    parser.add_argument("--hqq", help="python of an environment with torchao")
    options = parser.parse_args()
    chosen = options.solvers.split(",")
    if unknown := [name for name in chosen if name not in SOLVERS]:
        raise ValueError(f"--solvers: {unknown[0]!r} is none of {', '.join(SOLVERS)}")
    peers = {"gptq": options.gptq, "hqq": options.hqq}
    for size in options.sizes.split(","):
        w, gram = problem(*map(int, size.split("x")))
        head = f"{'solver':<12} {'first s':>9} {'later s':>9} {'error':>8}" + " stacked" * (options.stacked > 1)
        print(f"\n{size}, jax {jax.__version__}\n{head}", flush=True)
        for name in chosen:
            print(measure(name, w, gram, peers.get(name), options.stacked, options.repeats), flush=True)


if __name__ == "__main__":
    main()
