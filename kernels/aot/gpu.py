"""Compile a Mosaic GPU kernel for a GPU that is not here and read its machine code: registers, spills, main loop.

XLA compiles for any GPU from a description of it, and Mosaic GPU writes down the PTX, what ptxas says and the SASS of
each kernel. There is no model of time: a count of instructions is a bound on issue, nothing more. Needs the CUDA
plugin of jax and four of NVIDIA's wheels (`PACKAGES`; no driver, no toolkit). Lowering alone needs none of them and
finds layouts, swizzles and types that do not fit.
"""

from __future__ import annotations

import os
import pathlib
import re
import tempfile
from collections.abc import Callable, Sequence
from importlib import metadata
from typing import Any, NamedTuple

import jax
from jax.experimental import topologies
from jax.sharding import AbstractDevice, AbstractMesh, SingleDeviceSharding

from qjax.kernels.aot import child, sass

PACKAGES = (
    "jax-cuda13-pjrt",
    "jax-cuda13-plugin",
    "nvidia-cuda-nvcc",
    "nvidia-cuda-nvdisasm",
    "nvidia-nvjitlink",
    "nvidia-nvvm",
)
DUMPS = {f"MOSAIC_GPU_DUMP_{what}": "1" for what in ("PTX", "PTXAS", "SASS")}


class Gpu(NamedTuple):
    """One device: what the compiler asks of it. `clock` in GHz, `bandwidth` in bytes a second, the rest in bytes."""

    name: str
    capability: tuple[int, int]
    multiprocessors: int
    bandwidth: int
    shared_memory: int  # of a multiprocessor; a block may have 1 KiB less
    cache: int
    memory: int
    clock: float


GPUS = {
    "H100": Gpu("NVIDIA H100 80GB HBM3", (9, 0), 132, 3352320000000, 233472, 52428800, 84942979072, 1.98),
    "B200": Gpu("NVIDIA B200", (10, 0), 148, 7672320000000, 233472, 132644864, 191514411008, 1.965),
}


class Code(NamedTuple):
    """What the compiler made of the kernels of a function, or why it did not."""

    registers: int = 0  # a thread
    spills: int = 0  # instructions that load or store local memory
    instructions: int = 0  # of the main loop, for one warp
    products: int = 0  # matrix instructions among them
    opcode: str | None = None  # of these
    problem: str | None = None


def missing() -> str | None:
    """Why nothing can be compiled here, or None."""
    absent = [name for name in PACKAGES if not _installed(name)]
    if not absent:
        return None
    return (
        f"no {', '.join(absent)}: install qjax[kernels], or with --no-deps jax-cuda13-pjrt=={jax.__version__} "
        f"jax-cuda13-plugin=={jax.__version__} {' '.join(PACKAGES[2:])} (wheels for Python 3.12 and newer)"
    )


def lower(gpu: Gpu, f: Callable[..., Any], *shapes: tuple[Sequence[int], Any]) -> jax.stages.Lowered:
    """f for arguments of these (shape, dtype), lowered for the GPU: what Mosaic GPU refuses is raised as it is."""
    mesh = _mesh(gpu.name, gpu.multiprocessors)
    with jax.sharding.use_abstract_mesh(mesh):
        traced = jax.jit(f).trace(*(jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in shapes))
        return traced.lower(lowering_platforms=("cuda",))


def compiled(gpu: Gpu, f: Callable[..., Any], *shapes: tuple[Sequence[int], Any]) -> Code:
    """Compile f for arguments of these (shape, dtype) in a forked child, because LLVM aborts on some inputs.

    The process must not have run anything under JAX before. RuntimeError where packages are missing.
    """
    why = missing()
    if why is not None:
        raise RuntimeError(why)
    with tempfile.TemporaryDirectory() as folder:
        found, problem = child.call(lambda: _compile(gpu, f, shapes, pathlib.Path(folder)))
    return Code(problem=problem) if found is None else Code(*found)


def _compile(gpu: Gpu, f: Callable[..., Any], shapes: Sequence[Any], folder: pathlib.Path) -> Code:
    os.environ.update(DUMPS, MOSAIC_GPU_DUMP_TO=str(folder))
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_enable_compilation_cache", False)  # what is loaded is not dumped
    topology = topologies.get_topology_desc(
        platform="cuda", topology_name="", target_config=_description(gpu), topology="1x1x1"
    )
    where = SingleDeviceSharding(topology.devices[0])
    arguments = [jax.ShapeDtypeStruct(shape, dtype, sharding=where) for shape, dtype in shapes]
    with jax.sharding.use_abstract_mesh(_mesh(topology.devices[0].device_kind, None)):
        jax.jit(f).lower(*arguments).compile()
    kernels = [_read(path) for path in sorted(folder.glob("*.sass_ctrl"))]
    if not kernels:
        raise ValueError("the function has no Mosaic GPU kernel")
    return max(kernels, key=lambda kernel: kernel.products)


def _read(listing: pathlib.Path) -> Code:
    code, labels = sass.parse(listing.read_text())
    said = listing.with_suffix(".ptxas").read_text(errors="replace")
    loop = sass.main_loop(code, labels)
    products = sass.products(loop)
    registers = max(int(n) for n in re.findall(r"[Uu]sed (\d+) registers", said))
    return Code(registers, sass.spills(code), len(loop), len(products), products[0] if products else None)


def _mesh(kind: str, multiprocessors: int | None) -> AbstractMesh:
    device = AbstractDevice(device_kind=kind, num_cores=multiprocessors, platform="cuda")
    return AbstractMesh((1,), ("x",), abstract_device=device)


def _description(gpu: Gpu) -> str:
    """XLA's GpuTargetConfigProto, the fields that it asks for; accelerated features are the a in sm_90a."""
    major, minor = gpu.capability
    return f"""
    gpu_device_info {{
      threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
      shared_memory_per_block: 49152 shared_memory_per_core: {gpu.shared_memory}
      shared_memory_per_block_optin: {gpu.shared_memory - 1024}
      core_count: {gpu.multiprocessors} fpus_per_core: 128
      block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
      thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
      memory_bandwidth: {gpu.bandwidth} l2_cache_size: {gpu.cache}
      clock_rate_ghz: {gpu.clock} device_memory_size: {gpu.memory}
      cuda_compute_capability {{ major: {major} minor: {minor} feature_extension: ACCELERATED_FEATURES }}
      registers_per_core_limit: 65536 registers_per_block_limit: 65536
      device_vendor: "NVIDIA Corporation" name: "{gpu.name}" device_address_bits: 64
      driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
    }}
    platform_name: "CUDA"
    dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
    device_description_str: "{gpu.name}"
    """


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True
