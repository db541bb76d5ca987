"""A line of a table of kernels for TPUs that is held against the floor of the same work in bfloat16."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from qjax.kernels.aot import tpu
from qjax.kernels.aot.chips import CHIPS, Roofline


class Best(NamedTuple):
    """The fastest peer of a kind."""

    name: str
    cycles: int


def compiled(
    chip: str, f: Callable[..., Any], arguments: Sequence[tuple[Sequence[int], Any]], memory: float
) -> tuple[tpu.Estimate, int | None]:
    """What libtpu made of f, and its cycles: the larger of the estimate and those that its bytes take."""
    found = tpu.estimate(CHIPS[chip], f, *arguments)
    return found, None if found.cycles is None else max(found.cycles, round(memory))


def bits(dtype: Any) -> int:
    """Of a number of this type as a chip holds it."""
    return jnp.iinfo(dtype).bits if jnp.issubdtype(dtype, jnp.integer) else jnp.finfo(dtype).bits


def beside(best: Best | None, cycles: int | None) -> dict[str, Any]:
    """What the record of a kernel of ours says of the fastest peer."""
    ratio = None if best is None or cycles is None else round(best.cycles / cycles, 2)
    return {"peer": None if best is None else best.name, "speed_of_peer": ratio}


def said_beside(record: dict[str, Any]) -> str:
    """The same in words, empty where there is no peer."""
    ratio = record["speed_of_peer"]
    return "" if ratio is None else f"  {ratio:5.2f} of the speed of {record['peer']}"


def print_line(
    chip: str,
    name: str,
    f: Callable[..., Any],
    arguments: Sequence[tuple[Sequence[int], Any]],
    least: Roofline,
    base: Roofline,
    as_json: bool,
    best: Best | None = None,
) -> None:
    """Compile f: cycles, share of its roofline, speed against `base`, bfloat16's, and `best`, a peer's; or why not."""
    found, cycles = compiled(chip, f, arguments, least.memory)
    record = {
        "chip": chip,
        "kernel": name,
        "cycles": cycles,
        "estimated": found.cycles,
        "roofline": round(least.cycles),
        "share": None if cycles is None else round(least.cycles / cycles, 3),
        "speed_of_bf16_floor": None if cycles is None else round(base.cycles / cycles, 2),
        **beside(best, cycles),
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
            f"  {record['speed_of_bf16_floor']:5.2f} of bfloat16's floor{said_beside(record)}"
            f"  {found.bundles} bundles, {found.spills} spills",
            flush=True,
        )
