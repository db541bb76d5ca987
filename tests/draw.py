"""Random arrays for tests, drawn by numpy: jax compiles a generator anew for every shape, half a second each."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from qjax.models import Architecture
from qjax.models.decoder import nest


def normal(seed: int, *shape: int, scale: float = 1.0) -> jax.Array:
    """Float32 normal numbers with standard deviation `scale`."""
    return jnp.asarray(np.random.default_rng(seed).normal(0, scale, shape).astype(np.float32))


def student(seed: int, degrees: float, *shape: int, scale: float = 1.0) -> jax.Array:
    """Float32 numbers of Student's t: heavy tails."""
    return jnp.asarray(scale * np.random.default_rng(seed).standard_t(degrees, shape).astype(np.float32))


def integers(seed: int, low: int, high: int, *shape: int, dtype: Any = np.int32) -> jax.Array:
    """Integers from low to high - 1."""
    return jnp.asarray(np.random.default_rng(seed).integers(low, high, shape).astype(dtype))


def parameters(arch: Architecture, seed: int = 0) -> dict[str, Any]:
    """Parameters of a decoder, distributed as `Decoder.init` has them."""
    random = np.random.default_rng(seed)

    def leaf(path: str, shape: tuple[int, ...]) -> jax.Array:
        if path.endswith(("/scale", "_bias")):
            return jnp.asarray(np.full(shape, path.endswith("/scale"), np.float32))
        fan_in = shape[1] if path == "embed" else shape[0]
        return jnp.asarray(random.normal(0, fan_in**-0.5, shape).astype(np.float32))

    return nest({path: leaf(path, shape) for path, shape in arch.shapes.items()})


def like(tree: Any, seed: int = 0) -> Any:
    """A tree of shapes (`jax.eval_shape` of another library's initializer) filled with normal numbers."""
    random = np.random.default_rng(seed)

    def leaf(x: Any) -> jax.Array:
        return jnp.asarray(random.normal(0, x.shape[0] ** -0.5, x.shape), x.dtype)

    return jax.tree.map(leaf, tree)
