"""Where large numbers are: sizes of weights, maxima of what enters each matrix, and what a method leaves of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import qjax
from qjax.statistics import Reservoir
from qjax.trace.paths import leaves_with_paths
from qjax.trace.uses import Uses
from qjax.transforms.leaves import Core, transport


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


def input_sizes(model: Any, program: Any, window: Any, uses: Uses, targets: Sequence[str]) -> dict[str, list[float]]:
    """{path: [largest, median]} of the |x| that meets each matrix, where a method would round it.

    Observed in the network as it now is (params, or a Program with its taps), then carried through the maps in front
    of the leaf: a scale, a rotation, a permutation. Targets without a row per token (batched experts) are left out.
    """
    tapped = isinstance(program, qjax.Program)
    params = program.params if tapped else program

    def run(params: Any, tokens: Any) -> Any:
        return qjax.tapped(model)(dataclasses.replace(program, params=params), tokens)

    tokens = Reservoir(int(window.shape[0] * window.shape[1]))
    seen = qjax.observe(
        run if tapped else qjax.quantized(model), params, [window], collect=(tokens,), where=list(targets)
    )
    leaves, found = leaves_with_paths(params), {}
    for path in targets:
        if path in seen and (sample := seen[path]["reservoir"]).rows.ndim == 2:
            core = Core.of(leaves[path], uses[path][0])
            points = transport(path, core.maps, {"reservoir": tokens.points(sample)})["reservoir"]
            sizes = np.abs(np.asarray(points.x))[np.asarray(sample.filled)]
            found[path] = [float(sizes.max()), float(np.median(sizes))]
    return found
