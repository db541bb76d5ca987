"""Products of rows sorted by expert, compiled for TPUs that are not here: libtpu's estimate beside the roofline.

Eight experts of 4096 x 14336, every one chosen, and 32 rows of x: 16 tokens that pass two each. Cycles are the larger
of the estimate and the bytes over the bandwidth; where rows lie is found in the same function and counted too. The
estimate knows no routing: it has every block multiplied and fetched for, two more than rows in equal parts need. None
was checked on a chip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from experiments.benchmarks.kernels_aot import WEIGHTS
from experiments.benchmarks.kernels_floor import print_line
from experiments.benchmarks.kernels_peers import print_peers
from experiments.benchmarks.kernels_peers_table import experts
from qjax.kernels.aot.chips import CHIPS, Roofline, roofline
from qjax.kernels.tpu import codings, expert_products

EXPERTS, K, N = 8, 4096, 14336
M = 32
KERNELS = ("w4a16", "w8a16")


def build(kernel: str, chip: str) -> tuple[Callable[..., Any], list[tuple[tuple[int, ...], Any]]]:
    """The function to compile, and its arguments' (shape, dtype)."""
    coding, group, scale = WEIGHTS[kernel]
    coding = codings.taken(coding, "sums", chip)
    tiling = expert_products.blocks(M, EXPERTS, K, N, group, coding, "sums", chip)

    def product(x: jax.Array, codes: jax.Array, scale: jax.Array, sizes: jax.Array) -> jax.Array:
        return expert_products.matmul(x, codes, scale, sizes, coding, tiling, "sums")

    codes = ((EXPERTS, K // coding.packed, N), coding.dtype)
    return product, [((M, K), jnp.bfloat16), codes, ((EXPERTS, K // group, N), scale), ((EXPERTS,), jnp.int32)]


def floor(bits: float, chip: str) -> Roofline:
    """The least cycles: the products; the weights of so many bits, x and the result moved once."""
    return roofline(CHIPS[chip], 2 * M * K * N, EXPERTS * K * N * bits / 8 + 2 * M * K + 4 * M * N)


def print_table(chips: Sequence[str], as_json: bool, peers: bool = False) -> None:
    """One line a kernel and chip: cycles, share of the roofline, speed against bfloat16's floor; or the reason.

    With `peers`, public kernels for experts stand above it.
    """
    if not as_json:
        print(f"{M} rows sorted by expert @ [{EXPERTS}, {K}, {N}]", flush=True)
    for chip in chips:
        for kernel in KERNELS:
            coding, group, scale = WEIGHTS[kernel]
            least = floor(coding.bits + 8 * jnp.dtype(scale).itemsize / group, chip)
            best = None
            if peers:
                beside, sizes = experts(kernel, EXPERTS), (M, K, N)
                best = print_peers(beside, f"experts {kernel}", chip, sizes, least, 2 * M * K * N, as_json)
            print_line(chip, f"experts {kernel}", *build(kernel, chip), least, floor(16, chip), as_json, best)
