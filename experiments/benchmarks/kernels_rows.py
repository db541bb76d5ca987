"""Rows of a packed embedding, compiled for TPUs that are not here: libtpu's estimate beside the bytes of those rows.

The codes alone, int4 in groups of 64, of the vocabularies of SmolLM2 and Llama 3. Cycles are the larger of the estimate
and the bytes over the bandwidth, where bytes are those of the rows taken: a gather that reads more is far from it. None
was checked on a chip.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from experiments.benchmarks.kernels_floor import print_line
from qjax.kernels.aot.chips import CHIPS, roofline
from qjax.kernels.tpu import codings, column_gather

TABLES = ((576, 49152), (4096, 128256))
IDS = (16, 512)
WAYS: dict[str, Callable[..., Any]] = {"kernel": column_gather.take, "XLA": column_gather.reference}


def print_table(chips: Sequence[str], as_json: bool) -> None:
    """One line a table, number of ids and way: cycles, share of the roofline, speed against bfloat16's floor."""
    for chip in chips:
        coding = codings.taken(codings.INT4, "sums", chip)
        for K, N in TABLES:
            for ids in IDS:
                least, base = (roofline(CHIPS[chip], 0, 2 * ids * K * bits / 8) for bits in (coding.bits, 16))
                for way, take in WAYS.items():
                    arguments = [((K // coding.packed, N), coding.dtype), ((ids,), jnp.int32)]
                    print_line(chip, f"{ids} rows of {N} x {K}, {way}", take, arguments, least, base, as_json)
