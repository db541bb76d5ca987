"""A line of a table of kernels for TPUs that is held against the floor of the same work in bfloat16."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

from qjax.kernels.aot import tpu
from qjax.kernels.aot.chips import CHIPS, Roofline


def print_line(
    chip: str,
    name: str,
    f: Callable[..., Any],
    arguments: Sequence[tuple[Sequence[int], Any]],
    least: Roofline,
    base: Roofline,
    as_json: bool,
) -> None:
    """Compile f: cycles, share of its roofline, speed against `base`, bfloat16's; or why there is no estimate.

    Cycles are the larger of libtpu's estimate and the bytes over the bandwidth.
    """
    found = tpu.estimate(CHIPS[chip], f, *arguments)
    cycles = None if found.cycles is None else max(found.cycles, round(least.memory))
    record = {
        "chip": chip,
        "kernel": name,
        "cycles": cycles,
        "estimated": found.cycles,
        "roofline": round(least.cycles),
        "share": None if cycles is None else round(least.cycles / cycles, 3),
        "speed_of_bf16_floor": None if cycles is None else round(base.cycles / cycles, 2),
        "bundles": found.bundles,
        "spills": found.spills,
        "accessed": found.accessed,
        "problem": found.problem,
    }
    if as_json:
        print(json.dumps(record), flush=True)
    elif found.problem is not None:
        print(f"  {chip:3s} {name} not compiled: {found.problem}", flush=True)
    elif cycles is None:
        print(
            f"  {chip:3s} {name} no estimate; roofline {record['roofline']}, {found.bundles} bundles,"
            f" {found.accessed / 2**20:.1f} MiB moved",
            flush=True,
        )
    else:
        print(
            f"  {chip:3s} {name} {cycles:9d} cycles (estimate {found.cycles})  {record['share']:5.3f} of the roofline"
            f"  {record['speed_of_bf16_floor']:5.2f} of bfloat16's floor"
            f"  {found.bundles} bundles, {found.spills} spills",
            flush=True,
        )
