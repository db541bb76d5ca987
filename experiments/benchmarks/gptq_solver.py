"""Time of GPTQ's solver alone on the shapes of SmolLM2-135M: 30 layers, factors shared by weights with one input.

python -m experiments.benchmarks.gptq_solver [--format nvfp4] [--groups static] [--order activation] [--dtype float64]

Prints, per kind of work, seconds for the whole model, and the rate of the matrix products in it beside the rate of one
large matrix product measured in the same process. Compilation is timed apart. Data are random: the work is the same.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.timing import gemm_rate, seconds
from qjax.solvers import gptq

LAYERS = 30
# Inputs of a decoder layer: their width, and the outputs of the weights that read them.
INPUTS = {
    "attention q k v": (576, (576, 192, 192)),
    "attention o": (576, (576,)),
    "ffn gate up": (576, (1536, 1536)),
    "ffn down": (1536, (576,)),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", default="int4_g64")
    parser.add_argument("--groups", default="static", choices=("static", "stale", "fresh"))
    parser.add_argument("--order", default="none", choices=("none", "activation"))
    parser.add_argument("--dtype", default="float32", choices=("float32", "float64"))
    parser.add_argument("--block", default=128, type=int)
    options = parser.parse_args()

    rate = gemm_rate()
    print(f"{options.format}, groups {options.groups}, order {options.order}, {options.dtype}, jax {jax.__version__}")
    print(f"one float32 matrix product of 2048: {rate:.0f} GFLOP/s")
    compiling = total = flops = factoring = 0.0
    print(f"{'input':<16} {'K':>5} {'outputs':>12} {'factor ms':>10} {'sweep ms':>9} {'x 30, s':>8}")
    for name, (inputs, outputs) in INPUTS.items():
        x = jax.random.normal(jax.random.key(0), (2 * inputs, inputs), jnp.float32)
        gram = x.T @ x

        def factor(gram: jax.Array = gram) -> gptq.Factor:
            return gptq.factor(gram, order=options.order, dtype=options.dtype)

        start = time.perf_counter()
        factored = jax.block_until_ready(factor())
        weights = [jax.random.normal(jax.random.key(n), (inputs, n), jnp.float32) for n in outputs]

        def sweep(weights: list[jax.Array] = weights, factored: gptq.Factor = factored) -> Any:
            return [
                gptq.sweep(w, factored, options.format, groups=options.groups, block=options.block) for w in weights
            ]

        jax.block_until_ready(sweep())
        compiling += time.perf_counter() - start
        factor_time, sweep_time = (min(seconds(call) for _ in range(3)) for call in (factor, sweep))
        factoring += LAYERS * factor_time
        total += LAYERS * (factor_time + sweep_time)
        # Spreading the errors of every block over the later rows: K² N multiplications, half of them on zeros of U.
        flops += LAYERS * sum(2 * inputs**2 * n for n in outputs)
        print(
            f"{name:<16} {inputs:>5} {'+'.join(map(str, outputs)):>12} {1e3 * factor_time:>10.1f}"
            f" {1e3 * sweep_time:>9.1f} {LAYERS * (factor_time + sweep_time):>8.2f}"
        )
    share = flops / (total - factoring) / 1e9 / rate
    print(
        f"whole model: {total:.2f} s, of which factors {factoring:.2f} s; compiling and first calls {compiling:.1f} s"
    )
    print(f"sweeps: {flops / 1e12:.2f} TFLOP of block products, {share:.0%} of the rate of one large product")


if __name__ == "__main__":
    main()
