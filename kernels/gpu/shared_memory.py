"""How tiles lie in shared memory."""

from __future__ import annotations

from typing import Any

from jax.experimental.pallas import mosaic_gpu

plgpu: Any = mosaic_gpu  # its transforms look abstract to a type checker


def swizzled(columns: int, bits: int) -> tuple[Any, ...]:
    """Rows of so many entries as tensor cores, TMA, and loads without bank conflicts want them."""
    swizzle = plgpu.find_swizzle(columns * bits)
    return plgpu.TilingTransform((8, swizzle * 8 // bits)), plgpu.SwizzleTransform(swizzle)
