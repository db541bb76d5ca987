"""Scales of groups as they are stored, a byte each where the format has them so, and made float32 inside a kernel.

The scales of NVFP4 are a ninth of its bytes. As float32, which would be written in front of every call and read again,
they would be half as many as its codes.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental.pallas import tpu as pltpu

NAN = 0x7FC00000


def handed(scale: jax.Array) -> jax.Array:
    """What a kernel is given: float8_e4m3fn as it is, float8_e8m0fnu as its bits, anything else as float32."""
    if scale.dtype == jnp.float8_e8m0fnu:
        return lax.bitcast_convert_type(scale, jnp.uint8)
    return scale if scale.dtype == jnp.float8_e4m3fn else scale.astype(jnp.float32)


def held(block: Any, room: Any, factor: float = 1.0) -> Any:
    """A reference to scales / factor in float32, in a kernel: to the block where it is that, or to `room`, then filled.

    2^-127, the least of E8M0, is below what a TPU keeps and counts as zero.
    """
    if block.dtype == jnp.float32 and factor == 1:
        return block
    scale = block[...]
    if scale.dtype == jnp.uint8:
        exponent = scale.astype(jnp.int32)
        scale = pltpu.bitcast(jnp.where(exponent == 255, NAN, exponent << 23), jnp.float32)
    room[...] = scale.astype(jnp.float32) * jnp.float32(1 / factor)
    return room
