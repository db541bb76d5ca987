"""The decoder's forward pass beside plain matrix products of the same sizes: share of the GEMM rate.

    python -m experiments.benchmarks.forward [--windows 2] [--length 512] [--layers 4]

Layers have SmolLM2-135M's sizes and random weights. Counted: every product of the layers, attention as far as it is
computed (`causal_parts`). Not counted, but in the time: norms, RoPE, softmax, SwiGLU. The products are timed one by one
and their times added, so 100 % means that all else is free. Both are measured in turn, the best of several rounds. On
Linux a large share of what is left is page faults: glibc gives every array above 32 MiB fresh pages on every call.
MALLOC_MMAP_THRESHOLD_=1073741824 MALLOC_TRIM_THRESHOLD_=4294967296 in the environment keeps the pages.
"""

from __future__ import annotations

import argparse

import jax
import jax.numpy as jnp
from jax import Array

from experiments.benchmarks.timing import seconds
from qjax.kv.attention import causal_parts
from qjax.models import Architecture, Decoder
from qjax.models.decoder import block
from qjax.models.rope import rotations


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--windows", type=int, default=2)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=5)
    args = parser.parse_args()

    arch = Architecture(
        vocab=8, width=576, layers=args.layers, heads=9, kv_heads=3, head_dim=64, ffn=1536, theta=100000.0
    )
    params = Decoder(arch).init(jax.random.key(0))
    positions = jnp.arange(args.length, dtype=jnp.int32)[None]
    turns = rotations(arch, positions)
    x = jax.random.normal(jax.random.key(1), (args.windows, args.length, arch.width))
    tokens = args.windows * args.length

    def forward() -> Array:
        y = x
        for i in range(arch.layers):
            y = block(arch, params["layers"][str(i)], y, turns, None)
        return y

    product = jax.jit(lambda a, b: a @ b)
    keys = args.windows * arch.kv_heads
    shapes = [  # batch, rows, contracted, columns, how often in a layer
        (1, tokens, 576, 576, 2),
        (1, tokens, 576, 192, 2),
        (1, tokens, 576, 1536, 2),
        (1, tokens, 1536, 576, 1),
    ]
    for start, stop, slots in causal_parts(args.length):
        rows = arch.heads // arch.kv_heads * (stop - start)
        shapes += [(keys, rows, 64, slots, 1), (keys, rows, slots, 64, 1)]
    pairs = []
    for b, m, k, n, times in shapes:
        left, right = jax.random.normal(jax.random.key(2), (b, m, k)), jax.random.normal(jax.random.key(3), (b, k, n))
        pairs.append((left[0], right[0], times) if b == 1 else (left, right, times))
    flop = sum(2 * b * m * k * n * times for b, m, k, n, times in shapes) * arch.layers

    whole, gemm = [], []
    forward().block_until_ready()
    for a, b, _ in pairs:
        product(a, b).block_until_ready()
    for _ in range(args.rounds):
        whole.append(seconds(forward))
        gemm.append(arch.layers * sum(times * seconds(lambda a=a, b=b: product(a, b)) for a, b, times in pairs))
    rate, reference = flop / min(whole) / 1e9, flop / min(gemm) / 1e9
    print(f"{args.windows} x {args.length} tokens, {args.layers} layers of SmolLM2-135M, {flop / 1e9:.0f} GFLOP")
    print(f"forward  {min(whole):.3f} s  {rate:.0f} GFLOP/s")
    print(f"products {min(gemm):.3f} s  {reference:.0f} GFLOP/s")
    print(f"share of the GEMM rate: {rate / reference:.0%}")


if __name__ == "__main__":
    main()
