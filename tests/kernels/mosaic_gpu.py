"""Mosaic GPU on a CPU: where its kernels can be interpreted, and how."""

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
