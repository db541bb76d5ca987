"""Where large numbers are: sizes of weights, maxima of what enters each matrix, and what a method leaves of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import qjax
from qjax import diagnose
from qjax.statistics import Reservoir
from qjax.trace.paths import leaves_with_paths
from qjax.trace.uses import Uses
from qjax.transforms.leaves import Core


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


def meeting(model: Any, program: Any, window: Any, uses: Uses, targets: Sequence[str]) -> dict[str, dict[str, float]]:
    """{path: numbers} of the x [tokens, K] that meets each matrix, where a method rounds it.

    "largest" and "median" of |x|; "crest", each token's largest |x| over its rms, their mean; "kurtosis" of all of x
    about zero; "flatness", the distance of its channels' norms from a flat curve; "zeros", the share that is zero once
    it is rounded.

    Observed in the network as it now is (params, or a Program with its taps), then taken through the maps in front of
    the leaf: a scale, a rotation, a permutation. Targets without a row per token (batched experts) are left out.
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
            maps = Core.of(leaves[path], uses[path][0]).maps
            found[path] = {name: float(value) for name, value in _numbers(sample.rows[sample.filled], maps).items()}
    return found


@jax.jit
def _numbers(x: jax.Array, maps: tuple[Any, ...]) -> dict[str, jax.Array]:
    rounding = next((i for i, m in enumerate(maps) if m.nonlinear), len(maps))
    for m in maps[:rounding]:
        x = m.apply(x)
    rounded = x
    for m in maps[rounding:]:
        rounded = m.apply(rounded)
    size = jnp.abs(x)
    power = jnp.mean(size * size)
    return {
        "largest": jnp.max(size),
        "median": jnp.median(size),
        "crest": jnp.mean(diagnose.crest_factor(x, axis=-1)),
        "kurtosis": jnp.mean((size * size / jnp.where(power > 0, power, 1.0)) ** 2),
        "flatness": diagnose.flatness(x).distance,
        "zeros": diagnose.quantization_kernel(rounded),
    }
