"""Compile for a TPU that is not here and read libtpu's own static schedule of it: cycles, bundles, spills.

libtpu compiles for any generation from a description of its topology, and with the flags below writes down how many
cycles it expects each operation to take: it follows the control flow of the final schedule, grid and copies included.
Copies that run at the same time do not share bandwidth in that model, so a kernel that streams its weights can look
faster than memory allows; `cycles` of an `Estimate` must be read together with the roofline. Needs the libtpu wheel
(Python 3.12 or newer). None of its numbers was checked on a chip.
"""

from __future__ import annotations

import importlib.util
import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, SingleDeviceSharding

from qjax.kernels.aot import child
from qjax.kernels.aot.chips import Chip

QUIET = {  # none of these chooses the target; without them libtpu asks the network, takes a lock and logs gigabytes
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_MIN_LOG_LEVEL": "3",
}


class Estimate(NamedTuple):
    """What the compiler made of a function: cycles (None where it has no model of the chip or of an operation)."""

    cycles: int | None = None
    bundles: int = 0  # of the final schedules, a loop's body counted once
    spills: int = 0  # stores of registers
    problem: str | None = None  # why it did not compile
    largest: int = 0  # bundles of the operation that has most
    accessed: int = 0  # bytes that XLA counts its operations to read and write; a kernel's are not known to it


def missing() -> str | None:
    """Why nothing can be compiled here, or None."""
    if importlib.util.find_spec("libtpu") is None:
        return "no libtpu: install qjax[kernels], or libtpu==0.0.52 alone (wheels for Python 3.12 and newer)"
    return None


def estimate(chip: Chip, f: Callable[..., Any], *shapes: tuple[Sequence[int], Any]) -> Estimate:
    """Compile f for arguments of these (shape, dtype), each in a forked child, because libtpu aborts on some inputs.

    A kernel that asks JAX for its chip while it is traced (`pltpu.get_tpu_info`) is told this one. The process must not
    have run anything under JAX before: a fork does not take its threads along. RuntimeError where libtpu is missing.
    """
    why = missing()
    if why is not None:
        raise RuntimeError(why)
    found = _in_child(chip, f, shapes, chip.estimated)
    if chip.estimated and found.problem is not None and found.problem.startswith("aborted"):
        found = _in_child(chip, f, shapes, False)  # the compiler may manage what its estimate does not
    return found


def _in_child(chip: Chip, f: Callable[..., Any], shapes: Sequence[Any], profile: bool) -> Estimate:
    with tempfile.TemporaryDirectory() as folder:
        found, problem = child.call(lambda: _compile(chip, f, shapes, pathlib.Path(folder), profile))
    return Estimate(problem=problem) if found is None else Estimate(*found)


def _compile(chip: Chip, f: Callable[..., Any], shapes: Sequence[Any], folder: pathlib.Path, profile: bool) -> Estimate:
    flags = [
        f"--xla_jf_dump_to={folder}",
        "--xla_jf_dump_llo_text=true",
        "--xla_jf_dump_llo_pass_label_regex=.*final.*",
    ]
    if profile:
        flags.append(f"--xla_jf_dump_static_llo_profile_to={folder}")
    # Read once, when libtpu is loaded.
    os.environ.update(QUIET, LIBTPU_INIT_ARGS=" ".join(flags), TPU_LOG_DIR=str(folder))
    jax.config.update("jax_platforms", "cpu")
    topology = topologies.get_topology_desc(platform="tpu", topology_name=chip.topology)
    where = SingleDeviceSharding(topology.devices[0])
    arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=where) for shape, dtype in shapes]
    with jax.sharding.use_abstract_mesh(_mesh(topology.devices[0])):
        compiled = jax.jit(f).lower(*arguments).compile()
    cycles = [
        int(n) for path in folder.glob("*.textproto") for n in re.findall(r"estimated_cycles: (\d+)", path.read_text())
    ]
    uses = [_utilization(path) for path in folder.glob("*final_hlo-static-per-bundle-utilization.txt")]
    bundles, spills = (sum(part) for part in zip(*uses, strict=True)) if uses else (0, 0)
    largest = max((use[0] for use in uses), default=0)
    accessed = int((compiled.cost_analysis() or {}).get("bytes accessed", 0))
    return Estimate(sum(cycles) if cycles else None, bundles, spills, None, largest, accessed)


def _mesh(device: Any) -> AbstractMesh:
    """One device of this kind: what a kernel that asks JAX for its chip while it is traced is told."""
    kind = AbstractDevice(device_kind=device.device_kind, num_cores=device.num_cores, platform="tpu")
    return AbstractMesh((), (), abstract_device=kind)


def _utilization(path: pathlib.Path) -> tuple[int, int]:
    """(bundles, register stores) of one operation; (0, 0) for what is no operation of the program."""
    name = re.match(r"\d+-(.*?)-\d+-final", path.name)
    if name is None or name[1].startswith("<") or name[1] == "TLP":
        return 0, 0
    lines = path.read_text().splitlines()
    head = next(i for i, line in enumerate(lines) if line.startswith("MATMUL"))
    column = [slot.strip() for slot in lines[head].split(",")].index("VSTORE:SPILL")
    rows = [line.split() for line in lines[head + 3 :] if re.fullmatch(r"[\d ]+", line)]
    return len(rows), sum(int(row[column]) for row in rows)
