"""Where the large numbers are: sizes of weights, and channel maxima of what enters each matrix."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import qjax
from qjax.trace.paths import leaves_with_paths


@jax.jit
def _shape_of(w: jax.Array) -> jax.Array:
    flat = w.astype(jnp.float32).ravel()
    flat = flat - jnp.mean(flat)
    power = jnp.mean(flat * flat)
    return jnp.stack([jnp.max(jnp.abs(flat)), jnp.sqrt(power), jnp.mean((flat * flat) ** 2) / (power * power)])


def collect(model: Any, params: Any, batches: Sequence[Any], targets: Sequence[str]) -> dict[str, np.ndarray]:
    """Arrays by name: "weight/<path>" = [absmax, rms, kurtosis]; "input/<path>" = max |x| of each input channel [K].

    Inputs are observed on `batches` in the float model; matrices that read the same value have equal rows.
    """
    leaves = leaves_with_paths(params)
    pictures = {f"weight/{path}": np.asarray(_shape_of(jnp.asarray(leaves[path]))) for path in targets}
    seen = qjax.observe(model, params, batches, collect=("absmax",), where=list(targets))
    return pictures | {
        f"input/{path}": np.asarray(seen[path]["absmax"], np.float32) for path in targets if path in seen
    }
