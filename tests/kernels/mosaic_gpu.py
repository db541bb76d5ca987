"""Mosaic GPU on a CPU, where its kernels can be interpreted and how, and on a chip."""

from __future__ import annotations

from typing import Any

import jax
import pytest

needed = pytest.mark.skipif(
    jax.__version_info__ < (0, 12), reason=f"Mosaic GPU's interpreter and its layouts need jax 0.12: {jax.__version__}"
)


def interpreter() -> Any:
    """What `interpret` of a kernel takes; races raise."""
    from jax.experimental.pallas import mosaic_gpu as plgpu

    return plgpu.InterpretGPUParams(detect_races=True)


def skip_without(capability: str) -> None:
    """For tests of a compiled kernel: JAX_PLATFORMS=cuda on a GPU of this compute capability."""
    found = getattr(jax.devices()[0], "compute_capability", jax.default_backend())
    if found != capability:
        pytest.skip(f"needs a GPU of compute capability {capability}, and JAX_PLATFORMS=cuda: this is {found}")
