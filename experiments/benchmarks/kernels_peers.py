"""Public kernels beside ours, compiled for the same TPU in the same run, and the fastest of those with an estimate.

A peer that is not installed, or does not compile, is printed with its reason. Cycles are, as ours are, the larger of
libtpu's estimate and the bytes of the arguments and the result over the bandwidth; the share is of the roofline of our
kernel of the kind, so that shares compare as cycles do. What a peer does in several operations is compiled, and its
cycles are added up, as one function.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
import math
import sys
import types
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from experiments.benchmarks.kernels_floor import Best, bits, compiled
from qjax.kernels.aot.chips import CHIPS, Roofline, roofline

Shapes = Sequence[tuple[Sequence[int], Any]]


class Built(NamedTuple):
    """A function to compile, its arguments' (shape, dtype), and the bytes of its result."""

    function: Callable[..., Any]
    arguments: Shapes
    result: float


class Peer(NamedTuple):
    """A public way to do what a kernel of ours does; `package` is what it is imported from where that is not JAX.

    `build` takes the chip's name and the sizes of the problem, and imports the package. `unfollowed`: why libtpu's
    estimate of it says nothing, or None; it is compiled all the same.
    """

    name: str
    build: Callable[..., Built]
    package: str | None = None
    unfollowed: str | None = None


def missing(peer: Peer) -> str | None:
    """Why the peer cannot be built here, or None."""
    if peer.package is None or importlib.util.find_spec(peer.package.replace("-", "_")) is not None:
        return None
    return f"{peer.package} is not installed: pip install {INSTALL[peer.package]}"


INSTALL = {
    "tokamax": "tokamax",
    "qwix": "qwix",
    "tpu-inference": "--no-deps tpu-inference",  # its dependencies pin another jax; its kernels need JAX alone
}


def tpu_inference(module: str) -> Any:
    """A module of tpu-inference's kernels, entered without running the package, whose start is that of vLLM.

    Its kernels need JAX and a logger that says a thing once.
    """
    name = "tpu_inference"
    if name not in sys.modules:
        spec = importlib.util.find_spec(name)
        if spec is None or spec.submodule_search_locations is None:
            raise ModuleNotFoundError(f"{name} is not installed", name=name)
        package, log = types.ModuleType(name), types.ModuleType(f"{name}.logger")
        package.__spec__, package.__path__ = spec, list(spec.submodule_search_locations)
        setattr(log, "init_logger", _Silent)  # noqa: B010  # a module made here has no such attribute to assign
        sys.modules |= {name: package, log.__name__: log}
    return importlib.import_module(f"{name}.kernels.{module}")


class _Silent(logging.Logger):
    """Sizes that are missing from its tables are asked for here by name, so that its warnings say nothing new."""

    def warning_once(self, *_: object) -> None: ...

    def info_once(self, *_: object) -> None: ...


def print_peers(
    peers: Sequence[Peer], kind: str, chip: str, sizes: Sequence[int], least: Roofline, operations: float, as_json: bool
) -> Best | None:
    """One line a peer of the kind: cycles and share of `least`, our kernel's roofline; or the reason. The fastest."""
    best: Best | None = None
    for peer in peers:
        found, cycles, problem = None, None, missing(peer)
        if problem is None:
            try:
                built = peer.build(chip, *sizes)
            except ImportError as error:
                problem = f"it cannot be imported: {error}"
            else:
                moved = built.result + sum(bits(dtype) * math.prod(shape) for shape, dtype in built.arguments) / 8
                memory = roofline(CHIPS[chip], operations, moved).memory
                found, cycles = compiled(chip, built.function, built.arguments, memory)
                problem, cycles = found.problem, None if peer.unfollowed else cycles
        if cycles is not None and (best is None or cycles < best.cycles):
            best = Best(peer.name, cycles)
        record = {
            "chip": chip,
            "kernel": peer.name,
            "beside": kind,
            "shape": list(sizes),
            "cycles": cycles,
            "estimated": None if found is None else found.cycles,
            "roofline": round(least.cycles),
            "share": None if cycles is None else round(least.cycles / cycles, 3),
            "bundles": None if found is None else found.bundles,
            "spills": None if found is None else found.spills,
            "problem": problem,
            "unfollowed": peer.unfollowed,
        }
        if as_json:
            print(json.dumps(record), flush=True)
        else:
            print(f"    beside {kind}: {peer.name} {_said(record)}", flush=True)
    return best


def _said(record: dict[str, Any]) -> str:
    if record["problem"] is not None:
        return f"none: {record['problem']}"
    if record["cycles"] is None:
        why = "no estimate"
        if record["unfollowed"] is not None and record["estimated"] is not None:
            why = f"no use of its estimate, {record['estimated']}: {record['unfollowed']}"
        return f"compiled, {why}; {record['bundles']} bundles, {record['spills']} spills"
    return (
        f"{record['cycles']} cycles (estimate {record['estimated']})  {record['share']:5.3f} of the roofline"
        f"  {record['bundles']} bundles, {record['spills']} spills"
    )
