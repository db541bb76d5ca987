"""The Gram matrix of a layer's inputs: the upper triangle mirrored, beside one full matrix product.

    python -m experiments.benchmarks.gram

Prints, for each width, the median time of one product over that of `qjax.statistics.gram`, taken in turns.
"""

from __future__ import annotations

import statistics

import jax
import jax.numpy as jnp

from experiments.benchmarks.timing import seconds
from qjax.statistics import gram
from qjax.statistics.second_moments import halvings

WIDTHS = (256, 576, 1536, 4096)
TOKENS = 2048
REPEATS = 15


def main() -> None:
    """Time both in turns and print the ratio."""
    full = jax.jit(lambda x: jnp.matmul(x.T, x, precision=jax.lax.Precision.HIGHEST))
    ours = jax.jit(gram)
    print(f"jax {jax.__version__}, {TOKENS} tokens, float32, median of {REPEATS} runs in turns")
    for width in WIDTHS:
        x = jax.random.normal(jax.random.key(width), (TOKENS, width))
        times: dict[str, list[float]] = {"full": [], "ours": []}
        for f in (full, ours):
            f(x).block_until_ready()
        for _ in range(REPEATS):
            for name, f in (("full", full), ("ours", ours)):
                times[name].append(seconds(f, x))
        ratio = statistics.median(times["full"]) / statistics.median(times["ours"])
        print(f"{width:5d} features, {halvings(width)} halvings: {ratio:.2f} times as fast as one product")


if __name__ == "__main__":
    main()
