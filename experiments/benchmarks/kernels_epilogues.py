"""Corrections of a narrow weight compiled for TPUs that are not here: in the product's kernel, and by XLA behind it.

int4 in groups of 128, with a factored part of low rank (t = x @ a by XLA in front in both) or with channels of x beside
its own that stay floats. "apart" is the kernel alone, XLA's product of t and b, and the addition, in one function,
where XLA fetches factors while the kernel runs and may keep what it writes in vector memory; the parts follow, each a
function of its own that reads and writes HBM. Below them is what XLA makes of one entry in a thousand kept as a float,
of the gather of their inputs alone, which a kernel would still need in front, and of x in another order, as `Columns`
takes it. Cycles are the larger of the estimate and the bytes over the bandwidth. None was checked on a chip.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments.benchmarks.kernels_aot import WEIGHTS
from experiments.benchmarks.kernels_floor import print_line
from qjax.kernels.aot.chips import CHIPS, Roofline, roofline
from qjax.kernels.tpu import codings, group_scaled
from qjax.kernels.tpu.epilogues import Epilogue
from qjax.operators.maps.permute import Permute
from qjax.operators.sparse import Sparse

WEIGHT = "w4a16"
RANKS, CHANNELS = (32,), 64
SCATTERED = 1000  # one entry in so many
Shapes = list[tuple[tuple[int, ...], Any]]


class Kind(NamedTuple):
    """A correction: of a rank, with x @ a in front, or of so many channels of x; `fused` into the kernel or apart."""

    rank: int = 0
    channels: int = 0
    fused: bool = True
    given: bool = False  # t is an argument

    @property
    def name(self) -> str:
        what = f" + rank {self.rank}" if self.rank else f" + {self.channels} outlier channels" if self.channels else ""
        return f"{WEIGHT}{what}{', t given' if self.given else ''}{'' if self.fused else ', apart'}"


def build(chip: str, M: int, K: int, N: int, kind: Kind) -> tuple[Callable[..., Any], Shapes]:
    """The function to compile, and its arguments' (shape, dtype)."""
    coding, group, scale_type = WEIGHTS[WEIGHT]
    scaled = group_scaled.formulation(M)
    coding = codings.taken(coding, scaled, chip)
    tiling = group_scaled.blocks(M, K, N, group, coding, scaled, chip)
    product = functools.partial(group_scaled.matmul, coding=coding, tiling=tiling, scaled=scaled)

    def corrected(x: jax.Array, codes: jax.Array, scale: jax.Array, *factors: jax.Array) -> jax.Array:
        if not factors:
            return product(x, codes, scale)
        *first, b = factors
        if kind.channels:
            x, t = x[:, :K], x[:, K:]
        else:
            t = first[0] if kind.given else jnp.dot(x, first[0])
        if kind.fused:
            return product(x, codes, scale, epilogue=Epilogue(t, b))
        return added(product(x, codes, scale), t, b)

    rank, channels = kind.rank, kind.channels
    factors: Shapes = [((M if kind.given else K, rank), jnp.bfloat16)] if rank else []
    factors += [((rank + channels, N), jnp.bfloat16)] if rank + channels else []
    weight: Shapes = [((K // coding.packed, N), coding.dtype), ((K // group, N), scale_type)]
    return corrected, [((M, K + channels), jnp.bfloat16), *weight, *factors]


def added(y: jax.Array, t: jax.Array, b: jax.Array) -> jax.Array:
    """y + t @ b by XLA."""
    return y + jnp.dot(t, b, preferred_element_type=jnp.float32)


def floor(chip: str, M: int, K: int, N: int, kind: Kind, bits: float) -> Roofline:
    """The least cycles: weights of so many bits, the factors, x and the result moved once."""
    rank, channels = kind.rank, kind.channels
    first = M if kind.given else K
    moved = K * N * bits / 8 + 2 * (rank * first + (rank + channels) * N + M * (K + channels)) + 4 * M * N
    return roofline(CHIPS[chip], 2 * M * (K * N + rank * first + (rank + channels) * N), moved)


def print_table(
    chips: Sequence[str], sizes: Sequence[str], rows: Sequence[int], ranks: Sequence[int], as_json: bool
) -> None:
    """One line a kernel and chip: cycles, share of the roofline, speed against bfloat16's floor; or the reason."""
    coding, group, scale_type = WEIGHTS[WEIGHT]
    width = coding.bits + 8 * jnp.dtype(scale_type).itemsize / group
    kinds = [Kind()]
    for kind in (*(Kind(rank=rank) for rank in ranks), Kind(channels=CHANNELS)):
        kinds += [kind, kind._replace(fused=False)]
    kinds += [Kind(rank=rank, given=True) for rank in ranks]
    for size in sizes:
        K, N = map(int, size.split("x"))
        for M in rows:
            if not as_json:
                print(f"[{M}, {K}] @ [{K}, {N}]", flush=True)
            for chip in chips:
                for kind in kinds:
                    least, base = (floor(chip, M, K, N, kind, bits) for bits in (width, 16))
                    print_line(chip, kind.name, *build(chip, M, K, N, kind), least, base, as_json)
                for rank in ranks:
                    _print_parts(chip, M, K, N, rank, as_json)
                _print_gathers(chip, M, K, N, as_json)


def _print_parts(chip: str, M: int, K: int, N: int, rank: int, as_json: bool) -> None:
    """What XLA does apart, each alone."""
    x, a, b = ((M, K), jnp.bfloat16), ((K, rank), jnp.bfloat16), ((rank, N), jnp.bfloat16)
    t, y = ((M, rank), jnp.bfloat16), ((M, N), jnp.float32)
    base = roofline(CHIPS[chip], 2 * M * K * N, 2 * K * N)
    in_front = roofline(CHIPS[chip], 2 * M * K * rank, 2 * (M * K + K * rank + M * rank))
    behind = roofline(CHIPS[chip], 2 * M * rank * N, 8 * M * N + 2 * (M + N) * rank)
    print_line(chip, f"x @ a of rank {rank}, XLA", jnp.dot, [x, a], in_front, base, as_json)
    print_line(chip, f"y + t @ b of rank {rank}, XLA", added, [y, t, b], behind, base, as_json)


def _print_gathers(chip: str, M: int, K: int, N: int, as_json: bool) -> None:
    """Scattered entries by XLA, the gather of their inputs alone, and x in another order."""
    count = K * N // SCATTERED
    x, values, index = ((M, K), jnp.bfloat16), ((count,), jnp.bfloat16), ((count,), jnp.uint16)

    def whole(x: jax.Array, values: jax.Array, ins: jax.Array, outs: jax.Array) -> jax.Array:
        return Sparse(values, ins, outs, (K, N)).matmul(x, dtype=jnp.float32)

    def gather(x: jax.Array, ins: jax.Array) -> jax.Array:
        return x[:, ins.astype(jnp.int32)]  # as `Sparse` has it

    def ordered(x: jax.Array, order: jax.Array) -> jax.Array:
        return Permute(order).apply(x)

    def moved(entries: int) -> Roofline:
        return roofline(CHIPS[chip], 0, 2 * entries + 2 * M * K + 2 * M * entries)

    base = roofline(CHIPS[chip], 2 * M * K * N, 2 * K * N)
    least = roofline(CHIPS[chip], 2 * M * count, 6 * count + 2 * M * K + 4 * M * N)
    print_line(chip, f"{count} scattered entries, XLA", whole, [x, values, index, index], least, base, as_json)
    print_line(chip, "the gather of their inputs, XLA", gather, [x, index], moved(count), base, as_json)
    print_line(chip, "x in another order, XLA", ordered, [x, ((K,), jnp.int32)], moved(K), base, as_json)
